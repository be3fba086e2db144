// Cloudflare's API as far as wrangler reads it: accounts, D1, queues, secrets. And a registry of container images.
import { Hono } from "hono";
import { listen } from "./server.ts";

const ACCOUNT_ID = "0123456789abcdef0123456789abcdef";
export const API_TOKEN = "local-world-cloudflare-token-0001";

const answer = (result: unknown, more: object = {}) => ({ success: true, errors: [], messages: [], result, ...more });
const refusal = (code: number, message: string) => ({
  success: false,
  errors: [{ code, message }],
  messages: [],
  result: null,
});

/** What the account has; tests change it. `secrets`: by Worker; null: it is not deployed. */
export type CloudflareAccount = {
  databases: { uuid: string; name: string }[];
  /** Null: the table is not there yet. */
  migrations: string[] | null;
  queues: string[];
  secrets: Record<string, string[] | null>;
};

export async function startCloudflare(account: CloudflareAccount) {
  const app = new Hono();
  const asked: string[] = [];
  const root = "/client/v4";
  app.use(async (c, next) => {
    asked.push(`${c.req.method} ${c.req.path.slice(root.length)}`);
    if (c.req.header("authorization") !== `Bearer ${API_TOKEN}`)
      return c.json(refusal(10_000, "Authentication error"), 401);
    return next();
  });
  const page = (items: unknown[]) =>
    answer(items, {
      result_info: { page: 1, per_page: 100, count: items.length, total_count: items.length, total_pages: 1 },
    });
  app.get(`${root}/user`, (c) => c.json(answer({ id: "user", email: "operator@example.com" })));
  app.get(`${root}/user/tokens/verify`, (c) => c.json(answer({ id: "token", status: "active" })));
  const own = { id: ACCOUNT_ID, name: "Local World" };
  app.get(`${root}/accounts`, (c) => c.json(page([own])));
  app.get(`${root}/memberships`, (c) => c.json(page([{ id: "m", account: own, roles: [] }])));
  const of = `${root}/accounts/${ACCOUNT_ID}`;
  app.get(`${of}/d1/database`, (c) => {
    const name = c.req.query("name");
    return c.json(page(account.databases.filter((one) => name === undefined || one.name === name)));
  });
  app.get(`${of}/d1/database/:id`, (c) => {
    const found = account.databases.find(({ uuid }) => uuid === c.req.param("id"));
    return found === undefined ? c.json(refusal(7404, "The database could not be found"), 404) : c.json(answer(found));
  });
  app.post(`${of}/d1/database/:id/query`, (c) => {
    if (account.migrations === null) return c.json(refusal(7500, "no such table: d1_migrations: SQLITE_ERROR"), 400);
    const results = account.migrations.map((name) => ({ name }));
    return c.json(answer([{ results, success: true, meta: { duration: 0.1 } }]));
  });
  app.get(`${of}/queues`, (c) => {
    const name = c.req.query("name");
    const queues = account.queues.filter((one) => name === undefined || one === name);
    return c.json(
      page(
        queues.map((queue_name, i) => ({
          queue_id: `q${i}`,
          queue_name,
          created_on: "",
          modified_on: "",
          producers: [],
          consumers: [],
          producers_total_count: 1,
          consumers_total_count: 1,
        })),
      ),
    );
  });
  app.get(`${of}/workers/scripts/:name/secrets`, (c) => {
    const names = account.secrets[c.req.param("name")];
    if (names == null) return c.json(refusal(10_007, "This Worker does not exist on your account."), 404);
    return c.json(answer(names.map((name) => ({ name, type: "secret_text" }))));
  });
  const { port, stop } = await listen(app.fetch);
  return { baseUrl: `http://127.0.0.1:${port}${root}`, account, asked, stop };
}

/** Gives manifests of these images (`name:tag`) to whoever brings the token that it gives to everybody. */
export async function startRegistry(...images: string[]) {
  const app = new Hono();
  let origin = "";
  app.get("/token", (c) => c.json({ token: "anonymous" }));
  app.get("/v2/:user/:name/manifests/:tag", (c) => {
    const { user, name, tag } = c.req.param();
    if (c.req.header("authorization") !== "Bearer anonymous") {
      const challenge = `Bearer realm="${origin}/token",service="registry",scope="repository:${user}/${name}:pull"`;
      return c.body(null, 401, { "www-authenticate": challenge });
    }
    return images.includes(`${user}/${name}:${tag}`) ? c.json({ schemaVersion: 2 }) : c.body(null, 404);
  });
  const { port, stop } = await listen(app.fetch);
  origin = `http://127.0.0.1:${port}`;
  return { host: `127.0.0.1:${port}`, stop };
}

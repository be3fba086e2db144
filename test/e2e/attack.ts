// `npm run attack`: Debian's sqlmap and wapiti against the edge as it is built for upload. First with the limits lifted for
// their address, then with the limits on: they must find nothing, no answer may be a 5xx, and the second run must end in a ban.
import { spawn, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type ServerType, serve } from "@hono/node-server";
import { makeAdminKey } from "../../src/credentials/admin-key.ts";
import { fixedHeaders, freshHeaders } from "../world/agent.ts";
import { freePort } from "../world/ports.ts";
import { EDGE_UNDER_LOAD, openShop } from "../world/shop.ts";

const LIFTED = "203.0.113.80";
const LIMITED = "203.0.113.81";
const TOOL_TIMEOUT_MS = 900_000;
/** A crawler that was turned away at the door has found nothing either. */
const WAPITI_REQUESTS = 100;
const folder = mkdtempSync(join(tmpdir(), "clawcloud-attack-"));

for (const tool of ["sqlmap", "wapiti"]) {
  if (spawnSync(tool, ["--version"]).error === undefined) continue;
  console.error(`${tool} is not installed: apt-get install sqlmap wapiti`);
  process.exit(2);
}

const bootstrapKey = makeAdminKey();
const { RATE_LIMITS: _lifted, ...variables } = EDGE_UNDER_LOAD.variables;
const shop = await openShop([
  { ...EDGE_UNDER_LOAD, variables: { ...variables, ADMIN_API_KEY: bootstrapKey, UNLIMITED_CLIENTS: LIFTED } },
]);
const statuses: Record<string, Record<string, number>> = {};

/** What Cloudflare does in front: names the client. Counts answers by status. */
async function front(client: string): Promise<{ url: string; server: ServerType }> {
  const port = await freePort();
  const server = await new Promise<ServerType>((resolve) => {
    const started = serve(
      {
        hostname: "127.0.0.1",
        port,
        fetch: async (request) => {
          const { pathname, search } = new URL(request.url);
          const headers = new Headers(request.headers);
          headers.set("cf-connecting-ip", client);
          headers.delete("host");
          const body = ["GET", "HEAD"].includes(request.method) ? null : await request.arrayBuffer();
          const target = `${shop.workers.url("edge")}${pathname}${search}`;
          const answer = await fetch(target, { method: request.method, headers, body, redirect: "manual" });
          const counts = statuses[client] ?? {};
          statuses[client] = { ...counts, [answer.status]: (counts[answer.status] ?? 0) + 1 };
          const text = await answer.arrayBuffer();
          const passed = [...answer.headers].filter(
            ([name]) => !/^(content-encoding|content-length|transfer-encoding)$/.test(name),
          );
          return new Response(answer.status === 204 ? null : text, { status: answer.status, headers: passed });
        },
      },
      () => resolve(started),
    );
  });
  return { url: `http://127.0.0.1:${port}`, server };
}

function run(command: string, args: readonly string[]): Promise<string> {
  return new Promise((resolve) => {
    const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"], timeout: TOOL_TIMEOUT_MS });
    let output = "";
    for (const stream of [child.stdout, child.stderr])
      stream.on("data", (chunk: Buffer) => (output += chunk.toString()));
    child.on("close", () => resolve(output));
  });
}

/** Everything with an input, stars where sqlmap is to inject. */
async function targets(url: string, operatorKey: string): Promise<string[][]> {
  const { owner, tokenId } = shop;
  const fixed = (await fixedHeaders(owner, tokenId))["authorization"] ?? "";
  const { "x-access-message": message = "" } = await freshHeaders(shop.publicUrl, owner, tokenId);
  const asOperator = ["--headers", `X-API-Key: ${operatorKey}`];
  const json = "Content-Type: application/json";
  return [
    ["-u", `${url}/status/${tokenId}*`],
    ["-u", `${url}/vms/${owner.address}*?limit=10*&cursor=5*`],
    ["-u", `${url}/credentials/${tokenId}`, "--headers", `Authorization: ${fixed}*\nX-Access-Message: ${message}*`],
    [
      "-u",
      `${url}/agents/generate-wallet`,
      "--method",
      "POST",
      "--headers",
      json,
      "--data",
      '{"agentId":"agent-7*","publicKey":"02*"}',
    ],
    ["-u", `${url}/admin/vms?status=running*&limit=5*&cursor=7*`, ...asOperator],
    ["-u", `${url}/admin/security-events?event=x*&address=203.0.113.1*&since=2026-01-01T00:00:00Z*`, ...asOperator],
    ["-u", `${url}/admin/keys`, "--headers", "X-API-Key: claw_x*"],
    [
      "-u",
      `${url}/admin/bans`,
      "--method",
      "POST",
      "--headers",
      `X-API-Key: ${operatorKey}\n${json}`,
      "--data",
      '{"address":"198.51.100.1*","durationSeconds":60,"reason":"x*"}',
    ],
    ["-u", `${url}/nothing?q=1*`],
  ];
}

const SQLMAP = [
  "--batch",
  "--flush-session",
  "--level",
  "2",
  "--risk",
  "2",
  "--threads",
  "4",
  "--time-sec",
  "2",
  "--ignore-code",
  "400,401,403,404,409,429",
  "--output-dir",
  join(folder, "sqlmap"),
  "--disable-coloring",
];

async function sqlmap(args: readonly string[]): Promise<{ found: boolean; finished: boolean }> {
  const output = await run("sqlmap", [...args, ...SQLMAP]);
  return {
    found: output.includes("identified the following injection point"),
    finished: output.includes("do not appear to be injectable"),
  };
}

async function wapiti(url: string, operatorKey: string, name: string): Promise<string[]> {
  const report = join(folder, `wapiti-${name}.json`);
  const { owner, tokenId } = shop;
  const paths = [
    "/tiers",
    `/status/${tokenId}?x=1`,
    `/vms/${owner.address}?limit=5&cursor=7`,
    `/credentials/${tokenId}?x=1`,
    "/docs",
    "/llms.txt",
    "/openapi.json",
    "/admin/vms?status=running&limit=5",
    "/admin/logs/combined?file=0",
  ];
  const starts = paths.flatMap((path) => ["-s", `${url}${path}`]);
  const headers = ["-H", `X-API-Key: ${operatorKey}`];
  const modules = "sql,xss,permanentxss,exec,file,crlf,ssrf,redirect,xxe,shellshock,htaccess,methods,blindsql";
  await run("wapiti", [
    "-u",
    `${url}/`,
    ...starts,
    ...headers,
    "-m",
    modules,
    "-f",
    "json",
    "-o",
    report,
    "--flush-session",
    "--no-bugreport",
    "--store-session",
    join(folder, `wapiti-${name}`),
    "--max-scan-time",
    "600",
  ]);
  const { vulnerabilities } = JSON.parse(readFileSync(report, "utf8")) as {
    vulnerabilities: Record<string, { info: string }[]>;
  };
  return Object.entries(vulnerabilities).flatMap(([kind, list]) => list.map(({ info }) => `${kind}: ${info}`));
}

const failures: string[] = [];
const servers: ServerType[] = [];

const countOf = (client: string) => Object.values(statuses[client] ?? {}).reduce((sum, count) => sum + count, 0);

/** Both tools at everything, by one client. `mustFinish`: sqlmap tried all it knows, nothing turned it away. */
async function attack(client: string, operatorKey: string, mustFinish: boolean): Promise<void> {
  const { url, server } = await front(client);
  servers.push(server);
  for (const args of await targets(url, operatorKey)) {
    const { found, finished } = await sqlmap(args);
    const outcome = found ? "INJECTABLE" : finished ? "nothing" : mustFinish ? "DID NOT FINISH" : "nothing, cut short";
    console.log(`  sqlmap ${new URL(args[1] ?? "").pathname}: ${outcome}`);
    if (found || (mustFinish && !finished)) failures.push(`sqlmap: ${args[1]}: ${outcome}`);
  }
  const before = countOf(client);
  const findings = await wapiti(url, operatorKey, client);
  const requests = countOf(client) - before;
  console.log(`  wapiti: ${findings.length === 0 ? "nothing" : findings.join("; ")} in ${requests} requests`);
  failures.push(...findings);
  if (requests < WAPITI_REQUESTS) failures.push(`wapiti made only ${requests} requests`);
  for (const [status, count] of Object.entries(statuses[client] ?? {})) {
    console.log(`  ${status}: ${count}`);
    if (Number(status) >= 500) failures.push(`${count} answers were ${status}`);
  }
}

try {
  const made = await fetch(`${shop.workers.url("edge")}/admin/keys`, {
    method: "POST",
    headers: { "x-api-key": bootstrapKey, "content-type": "application/json", "cf-connecting-ip": LIFTED },
    body: '{"name":"attack"}',
  });
  const { key: operatorKey } = (await made.json()) as { key: string };

  console.log("limits lifted");
  await attack(LIFTED, operatorKey, true);

  console.log("limits on");
  await attack(LIMITED, operatorKey, false);
  const last = await fetch(`${shop.workers.url("edge")}/tiers`, { headers: { "cf-connecting-ip": LIMITED } });
  const { code } = (await last.json()) as { code?: string };
  console.log(`  ended with ${last.status} ${code ?? ""}`);
  if (code !== "ip_banned") failures.push("with the limits on the attack did not end in a ban");
} finally {
  for (const server of servers) server.close();
  await shop.close();
  rmSync(folder, { recursive: true, force: true });
}
for (const failure of failures) console.error(`! ${failure}`);
process.exit(failures.length === 0 ? 0 : 1);

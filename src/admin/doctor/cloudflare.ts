// `npm run doctor -- cloudflare`: the settings of this checkout, and what the account has of what they name.
import { execFile } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { stripVTControlCharacters } from "node:util";
import { secp256k1 } from "@noble/curves/secp256k1.js";
import { z } from "zod";
import { dataKeyId } from "../../credentials/ecies.ts";
import { keyRing } from "../../credentials/key-ring.ts";
import { WORKERS, type WorkerName } from "../environment.ts";
import { deploymentProblems, isDatabaseId, type Settings } from "../settings.ts";
import { WRANGLER } from "../wrangler.ts";
import { type Finding, needed, note, type Part, well } from "./finding.ts";
import { quote } from "./reason.ts";

const LIMIT_MS = 90_000;
const NOT_THERE = /\b10007\b|Worker \S+ not found/i;
/** Without these a Worker refuses to run. */
const SECRETS: Readonly<Record<WorkerName, readonly string[]>> = {
  edge: ["RPC_URLS", "DATA_PRIVATE_KEY"],
  provisioner: ["RPC_URLS", "DATA_PUBLIC_KEY", "VULTR_API_KEY", "RUNPOD_API_KEY"],
};

const whoSchema = z.object({ accounts: z.array(z.object({ id: z.string(), name: z.string() })) });
const databasesSchema = z.array(z.object({ uuid: z.string(), name: z.string() }));
const secretsSchema = z.array(z.object({ name: z.string() }));
const migrationsSchema = z.array(z.object({ results: z.array(z.object({ name: z.string() })) }));

export const examineCloudflare: Part = async (settings) => {
  const here = [tellSettings(settings), tellDataKey(settings)];
  const login = await lookAtLogin(settings);
  if (!login.isIn) return [...here, login.finding];
  const account = await Promise.all([
    lookAtDatabase(settings),
    lookAtQueues(settings),
    ...(["edge", "provisioner"] as const).map((worker) => lookAtWorker(settings, worker)),
  ]);
  return [...here, login.finding, ...account.flat()];
};

function tellSettings({ environments }: Settings): Finding {
  const problems = deploymentProblems(environments);
  if (problems.length === 0) return well("settings", "a deployment takes them");
  const todo = `Settle what a deployment refuses: ${problems.join("; ")}.`;
  return needed("settings", `${problems.length} that a deployment refuses`, todo);
}

/** Sealed under a key that nobody holds, every SSH key would be lost (hard case 8). */
function tellDataKey({ edge, provisioner }: Settings): Finding {
  const what = "data key";
  const absent = [...(edge.wrong.has("DATA_PRIVATE_KEY") ? ["DATA_PRIVATE_KEY"] : [])];
  if (provisioner.wrong.has("DATA_PUBLIC_KEY")) absent.push("DATA_PUBLIC_KEY");
  if (absent.length > 0) {
    const todo = `Have both files that "npm run keys" made in .secrets: ${absent.join(" and ")} ${absent.length === 1 ? "is" : "are"} not here, or no key.`;
    return needed(what, `without ${absent.join(" and ")}`, todo);
  }
  const ring = keyRing(edge.config);
  const sealing = dataKeyId(secp256k1.Point.fromBytes(provisioner.config.DATA_PUBLIC_KEY).toBytes());
  if (ring.current === sealing) return well(what, `${sealing}: its halves belong together`);
  if (ring.ids.includes(sealing)) {
    const todo = `Give the provisioner the public half of the new data key, ${ring.current}: it still seals under ${sealing}, which is retired.`;
    return needed(what, `the provisioner seals under the retired ${sealing}`, todo);
  }
  const todo =
    'Put the two halves that one run of "npm run keys" made into .secrets: what the provisioner seals, this edge can\'t open.';
  return needed(what, `the edge opens ${ring.ids.join(", ")}, the provisioner seals under ${sealing}`, todo);
}

type Run = { code: number; stdout: string; said: string };

/** wrangler as an operator would run it, without a question to anybody. */
function wrangler({ folder }: Settings, ...args: string[]): Promise<Run> {
  const env = {
    ...process.env,
    WRANGLER_SEND_METRICS: "false",
    WRANGLER_HIDE_BANNER: "true",
    FORCE_COLOR: "0",
    CI: "true",
  };
  const options = { cwd: folder, env, maxBuffer: 1 << 24 };
  return new Promise((resolve) => {
    const child = execFile(process.execPath, [WRANGLER, ...args], options, (error, stdout, stderr) => {
      clearTimeout(timer);
      const code = error === null ? 0 : typeof error.code === "number" ? error.code : 1;
      // Told to end, it ends as if all were well.
      const late = `no answer within ${LIMIT_MS / 1_000} s`;
      resolve(isLate ? { code: 1, stdout: "", said: late } : { code, stdout, said: wordsOf(`${stderr}\n${stdout}`) });
    });
    let isLate = false;
    const timer = setTimeout(() => {
      isLate = true;
      child.kill("SIGKILL");
    }, LIMIT_MS);
    child.stdin?.end();
  });
}

/** The line that says what is wrong, out of a page for people. */
function wordsOf(text: string): string {
  const lines = stripVTControlCharacters(text)
    .split("\n")
    .map((line) => line.replaceAll(/[✘▲]|\[ERROR\]|\[WARNING\]/g, "").trim());
  return quote(
    lines
      .filter((line) => line !== "" && !/^(🪵|-{3}|If you think)/u.test(line))
      .slice(0, 3)
      .join(" "),
  );
}

function parse<T>({ stdout }: Run, schema: z.ZodType<T>): T | null {
  try {
    return schema.parse(JSON.parse(stdout));
  } catch {
    return null;
  }
}

const failed = (what: string, { said }: Run): Finding =>
  needed(what, said, `Mend what keeps wrangler from reading ${what}, and ask again: ${said}`);

async function lookAtLogin(settings: Settings): Promise<{ isIn: boolean; finding: Finding }> {
  const what = "wrangler";
  const run = await wrangler(settings, "whoami", "--json");
  const who = parse(run, whoSchema);
  if (run.code !== 0 || who === null) {
    const loggedOut = /"loggedIn":\s*false|not logged in|not authenticated/i.test(`${run.stdout} ${run.said}`);
    const todo = loggedOut
      ? 'Log in to Cloudflare: "npx wrangler login".'
      : `Log in to Cloudflare again ("npx wrangler login"), or check CLOUDFLARE_API_TOKEN: ${run.said}`;
    return { isIn: false, finding: needed(what, loggedOut ? "not logged in" : run.said, todo) };
  }
  const names = who.accounts.map(({ name, id }) => `${name} (${id.slice(0, 6)}…)`).join(", ");
  if (who.accounts.length <= 1 || process.env["CLOUDFLARE_ACCOUNT_ID"] !== undefined) {
    return { isIn: true, finding: well(what, `logged in: ${names || "no account"}`) };
  }
  const todo = "Set CLOUDFLARE_ACCOUNT_ID, or account_id in both wrangler.toml files: the login has several accounts.";
  return { isIn: true, finding: needed(what, `logged in, with several accounts: ${names}`, todo) };
}

async function lookAtDatabase(settings: Settings): Promise<Finding[]> {
  const [database] = settings.environments.edge.databases;
  const name = database?.name ?? "clawcloud";
  const run = await wrangler(settings, "d1", "list", "--json", "-c", WORKERS.edge.file);
  const all = parse(run, databasesSchema);
  if (run.code !== 0 || all === null) return [failed("D1", run)];
  const id = database?.id;
  const own = all.find(({ uuid }) => uuid === id);
  if (own !== undefined) return [well("D1", `${own.name} (${own.uuid})`), await lookAtMigrations(settings, name)];
  const namesake = all.find((one) => one.name === name);
  if (namesake !== undefined) {
    const todo = `Set database_id = "${namesake.uuid}" in both wrangler.toml files: that is the account's ${name}.`;
    return [needed("D1", isDatabaseId(id) ? `no database ${id}` : "database_id is not set", todo)];
  }
  const todo = `Make the database: "npx wrangler d1 create ${name}", and set its id as database_id in both wrangler.toml files.`;
  return [needed("D1", `the account has no ${name}`, todo)];
}

/** By a query of our own: "wrangler d1 migrations list" makes its table where there is none. */
async function lookAtMigrations(settings: Settings, name: string): Promise<Finding> {
  const what = "migrations";
  const query = "SELECT name FROM d1_migrations";
  const run = await wrangler(
    settings,
    "d1",
    "execute",
    name,
    "--remote",
    "--json",
    "-y",
    "--command",
    query,
    "-c",
    WORKERS.edge.file,
  );
  const told = parse(run, migrationsSchema);
  const isEmpty = /no such table/i.test(`${run.stdout} ${run.said}`);
  if (told === null && !isEmpty) return failed(what, run);
  const applied = new Set(told?.flatMap(({ results }) => results.map((row) => row.name)) ?? []);
  const folder = join(settings.folder, "migrations");
  const files = existsSync(folder) ? readdirSync(folder).filter((file) => file.endsWith(".sql")) : [];
  const waiting = files.filter((file) => !applied.has(file));
  if (waiting.length === 0) return well(what, `all ${files.length} applied`);
  const todo = `Apply the migrations: "npx wrangler d1 migrations apply ${name} --remote".`;
  return needed(what, `${waiting.length} of ${files.length} not applied: ${waiting.join(", ")}`, todo);
}

async function lookAtQueues(settings: Settings): Promise<Finding[]> {
  const { edge, provisioner } = settings.environments;
  const names = [...new Set([...edge.queues, ...provisioner.queues])];
  const run = await wrangler(settings, "queues", "list", "-c", WORKERS.edge.file);
  if (run.code !== 0) return [failed("queues", run)];
  const listed = new Set(run.stdout.match(/[\w-]+/g) ?? []);
  // A list is a page of a hundred.
  const absent: string[] = [];
  for (const name of names.filter((one) => !listed.has(one))) {
    const info = await wrangler(settings, "queues", "info", name, "-c", WORKERS.edge.file);
    if (info.code !== 0) absent.push(name);
  }
  if (absent.length === 0) return [well("queues", names.join(", "))];
  const todo = `Make the queues: ${absent.map((name) => `"npx wrangler queues create ${name}"`).join(", ")}.`;
  return [needed("queues", `without ${absent.join(", ")}`, todo)];
}

async function lookAtWorker(settings: Settings, worker: WorkerName): Promise<Finding> {
  const what = `${worker}'s secrets`;
  const run = await wrangler(settings, "secret", "list", "--format", "json", "-c", WORKERS[worker].file);
  const told = parse(run, secretsSchema);
  if (told === null) {
    return NOT_THERE.test(`${run.said} ${run.stdout}`)
      ? note(what, "the Worker is not deployed yet; the first deployment uploads them")
      : failed(what, run);
  }
  const names = told.map(({ name }) => name);
  const absent = SECRETS[worker].filter((name) => !names.includes(name));
  if (absent.length === 0) return well(what, names.join(", "));
  const { file } = WORKERS[worker];
  const todo = `Deploy with .secrets/${worker}.json, or "npx wrangler secret put ${absent[0]} -c ${file}": the ${worker} Worker has no ${absent.join(", ")}.`;
  return needed(what, `without ${absent.join(", ")}`, todo);
}

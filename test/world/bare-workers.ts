// Workers as they are built for upload, in one workerd and each on a port of its own: no development server between a
// client and the Worker. For load, and for requests that no HTTP client would send.
import { type ChildProcess, execFile } from "node:child_process";
import { readdir, readFile, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify, stripVTControlCharacters } from "node:util";
import { convertV4MiniflareOptions, Log, LogLevel, Miniflare, type V4MiniflareOptions } from "miniflare";
import { WRANGLER } from "../../src/admin/wrangler.ts";
import { builtOnce } from "./build-cache.ts";
import { readMigrations } from "./migrations.ts";

const ROOT = fileURLToPath(new URL("../../", import.meta.url).href);
const run = promisify(execFile);

const READER = fileURLToPath(new URL("wrangler-reads.ts", import.meta.url).href);

const underWay = new Set<ChildProcess>();
/** Ends every wrangler that runs: what waits for it fails. */
export function endBuilds(): void {
  for (const child of underWay) child.kill();
}

/** Runs wrangler as an operator would, without calls home; resolves with what it printed. */
export const wrangler = (args: readonly string[]): Promise<string> => runQuietly([WRANGLER, ...args]);

async function runQuietly(args: readonly string[]): Promise<string> {
  const env = {
    ...process.env,
    CLOUDFLARE_CF_FETCH_ENABLED: "false",
    WRANGLER_SEND_METRICS: "false",
    WRANGLER_SEND_ERROR_REPORTS: "false",
    WRANGLER_LOG: "log",
    WRANGLER_WRITE_LOGS: "false",
    NO_COLOR: "1",
  };
  const running = run(process.execPath, args, { cwd: ROOT, env, maxBuffer: 1 << 24 });
  underWay.add(running.child);
  try {
    return (await running).stdout;
  } finally {
    underWay.delete(running.child);
  }
}

/** What the compiler says in a build's error, with its paths from the repository on; wrangler colours it in any case. */
function compilerWords(error: unknown, config: string): unknown {
  if (!(error instanceof Error && "stderr" in error)) return error;
  const words = stripVTControlCharacters(String(error.stderr))
    .replaceAll("✘ [ERROR] ", "")
    .replaceAll(
      /^( +)(\S.*)(?=:\d+:\d+:$)/gm,
      (_, indent: string, file: string) => indent + join(dirname(config), file),
    )
    .replaceAll(/\s*\n/g, "\n")
    .trim();
  return words === "" ? error : new Error(words);
}

export type WorkerSource = {
  name: string;
  /** wrangler's configuration; `entry` replaces its `main`. */
  config: string;
  entry?: string;
  variables: Record<string, string>;
  /** Class names of the objects by binding; `of` names the Worker that exports them. */
  objects: Record<string, { className: string; of?: string }>;
  /** Workers of one name share a database. */
  database?: string;
  /**
   * Whether it takes messages from the queues that the provisioner's configuration names; with `batchSize` in larger batches,
   * since here one batch runs at a time, and at Cloudflare many.
   */
  consumes?: boolean;
  batchSize?: number;
  /** Where it has to be known before the Worker runs; else any free one. */
  port?: number;
};

export type BareLog = { time: number; message: string };

/** Workers as built for upload, and the database's migrations; plain data, so that another process can run them. */
export type BuiltWorkers = { workers: BuiltWorker[]; migrations: string[][] };
type BuiltWorker = Awaited<ReturnType<typeof buildWorker>> & { port?: number };

/**
 * Starts the Workers over one queue and one database, or as many as they name. Migrations are applied. With `persistTo`, a
 * folder, the next ones that get it find what these have stored.
 */
export async function startBareWorkers(
  sources: readonly WorkerSource[],
  onLog: (line: BareLog) => void = () => {},
  { persistTo }: { persistTo?: string } = {},
) {
  return runWorkers(await buildWorkers(sources), onLog, persistTo);
}
export type BareWorkers = Awaited<ReturnType<typeof startBareWorkers>>;

/** Builds each Worker, unless these sources were built before. */
export async function buildWorkers(sources: readonly WorkerSource[]): Promise<BuiltWorkers> {
  const reading = readConsumers();
  // Where one fails, the others don't go on unseen.
  const building = sources.map((source) => buildWorker(source, reading));
  await Promise.allSettled([reading, ...building]);
  const workers = await Promise.all(building);
  return { workers, migrations: readMigrations().map(({ queries }) => queries) };
}

/** What a Worker is built from, and what says how. */
const SOURCES = ["src", "durable-objects", "wrangler.toml", "package.json", "package-lock.json", "tsconfig.json"];
const BAD_DAY = ["bad-day", "bad-day-edge", "bad-day-provisioner"].map((name) => `test/world/${name}.ts`);
const TEST_SOURCES = ["test/bench", "test/worker/meter.ts", ...BAD_DAY];

const FORM = "upload.form";

/** Resolves with the folder of what wrangler would upload. */
function build({ config, entry }: Pick<WorkerSource, "config" | "entry">): Promise<string> {
  const entries = entry === undefined ? [] : [entry];
  const isOurs = [config, ...entries].some((path) => path.startsWith("test/"));
  const what = [config, ...entries].join("-").replaceAll(/\W+/g, "-");
  return builtOnce(what, isOurs ? [...SOURCES, ...TEST_SOURCES] : SOURCES, async (folder) => {
    const out = ["--outdir", folder, "--outfile", join(folder, FORM)];
    await wrangler(["deploy", ...entries, "-c", config, "--dry-run", ...out]).catch((error: unknown) => {
      throw compilerWords(error, config);
    });
  });
}

/** What wrangler uploads of a Worker (Cloudflare's API, "Upload Worker Module"). */
export async function uploadFormOf(config: string): Promise<FormData> {
  const body = await readFile(join(await build({ config }), FORM));
  const [boundary = ""] = /(?<=^--)[^\r\n]+/.exec(body.subarray(0, 200).toString("latin1")) ?? [];
  return new Response(body, { headers: { "content-type": `multipart/form-data; boundary=${boundary}` } }).formData();
}

async function buildWorker(source: WorkerSource, reading: Promise<Consumer[]>) {
  const { name, variables, objects, database = "clawcloud", consumes, batchSize, port } = source;
  const outdir = await build(source);
  return {
    name,
    ...(port === undefined ? {} : { port }),
    options: {
      name,
      compatibilityDate: "2026-10-01",
      modules: await modulesOf(outdir),
      modulesRoot: outdir,
      bindings: variables,
      d1Databases: { DB: database },
      queueProducers: { JOBS: "clawcloud-jobs" },
      queueConsumers: consumes ? consumersOf(await reading, batchSize) : {},
      durableObjects: Object.fromEntries(
        Object.entries(objects).map(([binding, { className, of }]) => [
          binding,
          { className, useSQLite: true, ...(of === undefined ? {} : { scriptName: of }) },
        ]),
      ),
    },
  };
}

type Consumer = {
  queue: string;
  max_batch_size?: number;
  max_batch_timeout?: number;
  max_retries?: number;
  dead_letter_queue?: string;
};

/** The queues that the provisioner consumes, with the settings that it is deployed with. */
function consumersOf(consumers: readonly Consumer[], batchSize?: number) {
  return Object.fromEntries(
    consumers.map((one) => [
      one.queue,
      {
        ...(one.max_batch_size === undefined ? {} : { maxBatchSize: one.max_batch_size }),
        ...(batchSize === undefined ? {} : { maxBatchSize: batchSize }),
        ...(one.max_batch_timeout === undefined ? {} : { maxBatchTimeout: one.max_batch_timeout }),
        ...(one.max_retries === undefined ? {} : { maxRetries: one.max_retries }),
        ...(one.dead_letter_queue === undefined ? {} : { deadLetterQueue: one.dead_letter_queue }),
      },
    ]),
  );
}

/** Runs what was built. With `persistTo` a run goes on where the one before it was killed. */
export async function runWorkers(
  { workers, migrations }: BuiltWorkers,
  onLog: (line: BareLog) => void,
  persistTo?: string,
) {
  const options: V4MiniflareOptions = {
    log: new Log(LogLevel.ERROR),
    cf: false,
    ...(persistTo === undefined ? {} : { resourcePersistencePath: persistTo }),
    ...(process.env["INSPECT"] ? { inspectorPort: 9333 } : {}),
    stripDisablePrettyError: false,
    // The Workers print in batches of lines.
    handleStructuredLogs: ({ timestamp, message }) => {
      for (const line of message.split("\n")) onLog({ time: timestamp, message: line });
    },
    workers: workers.map((worker) => ({
      ...worker.options,
      stripCfConnectingIp: false,
      unsafeDirectSockets: [{ host: "127.0.0.1", port: worker.port ?? 0 }],
    })),
  };
  const miniflare = new Miniflare({
    ...convertV4MiniflareOptions(options),
    ...(persistTo === undefined ? {} : { resourcePersistencePath: persistTo }),
  });
  await miniflare.ready;
  const urls = new Map<string, string>();
  for (const { name } of workers) urls.set(name, (await miniflare.unsafeGetDirectURL(name)).origin);
  const databases = new Map(workers.map(({ name, options: { d1Databases } }) => [d1Databases.DB, name]));
  for (const name of databases.values()) await migrate(await miniflare.getD1Database("DB", name), migrations);
  return {
    miniflare,
    database: await miniflare.getD1Database("DB", workers[0]?.name),
    url: (name: string): string => {
      const url = urls.get(name);
      if (url === undefined) throw new Error(`no Worker is named ${name}`);
      return url;
    },
    stop: () => miniflare.dispose(),
  };
}

async function modulesOf(outdir: string) {
  const names = (await readdir(outdir)).filter((name) => /\.(js|css|txt)$/.test(name));
  // The built Worker bears its entry's name; imported texts begin with a hash.
  const isText = (name: string) => /^[0-9a-f]{40}-/.test(name);
  const ordered = [...names.filter((name) => !isText(name)), ...names.filter(isText)];
  return ordered.map((name) => ({
    type: isText(name) ? ("Text" as const) : ("ESModule" as const),
    path: join(outdir, name),
  }));
}

type Database = Awaited<ReturnType<Miniflare["getD1Database"]>>;

async function migrate(database: Database, migrations: readonly string[][]): Promise<void> {
  const made = await database.prepare("SELECT 1 FROM sqlite_master WHERE name = 'vms'").first();
  if (made !== null) return;
  // All in one, which the local D1 takes: to prepare each from here is a round trip for each.
  await database.prepare(migrations.flat().join(";\n")).run();
}

const CONSUMER = "src/provisioner/wrangler.toml";

/** The queues of the one Worker that consumes any. */
async function readConsumers(): Promise<Consumer[]> {
  const file = "read.json";
  const folder = await builtOnce(
    "read",
    [CONSUMER, "test/world/wrangler-reads.ts", "package-lock.json"],
    async (made) => {
      await writeFile(join(made, file), await runQuietly([READER, CONSUMER]));
    },
  );
  return (JSON.parse(await readFile(join(folder, file), "utf8")) as { consumers: Consumer[] }).consumers;
}

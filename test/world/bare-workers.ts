// Workers as they are built for upload, in one workerd and each on a port of its own: no development server between a
// client and the Worker. For load, and for requests that no HTTP client would send.
import { execFile } from "node:child_process";
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { readD1Migrations } from "@cloudflare/vitest-plugin";
import { convertV4MiniflareOptions, Log, LogLevel, Miniflare, type V4MiniflareOptions } from "miniflare";
import { WRANGLER } from "../../src/admin/wrangler.ts";
import { freePort } from "./ports.ts";

const ROOT = fileURLToPath(new URL("../../", import.meta.url).href);
const run = promisify(execFile);

/** Runs wrangler as an operator would, without calls home; resolves with what it printed. */
export async function wrangler(args: readonly string[]): Promise<string> {
  const env = {
    ...process.env,
    CLOUDFLARE_CF_FETCH_ENABLED: "false",
    WRANGLER_SEND_METRICS: "false",
    WRANGLER_SEND_ERROR_REPORTS: "false",
    WRANGLER_LOG: "log",
    NO_COLOR: "1",
  };
  const { stdout } = await run(process.execPath, [WRANGLER, ...args], { cwd: ROOT, env, maxBuffer: 1 << 24 });
  return stdout;
}

export type WorkerSource = {
  name: string;
  /** wrangler's configuration; `entry` replaces its `main`. */
  config: string;
  entry?: string;
  variables: Record<string, string>;
  /** Class names of the objects by binding; `of` names the Worker that exports them. */
  objects: Record<string, { className: string; of?: string }>;
};

export type BareLog = { time: number; message: string };

/**
 * Starts the Workers over one database and one queue that nothing consumes. Migrations are applied. With `persistTo`, a
 * folder, the next ones that get it find what these have stored.
 */
export async function startBareWorkers(
  sources: readonly WorkerSource[],
  onLog: (line: BareLog) => void = () => {},
  { persistTo }: { persistTo?: string } = {},
) {
  const built = await mkdtemp(join(tmpdir(), "clawcloud-bare-"));
  const workers = await Promise.all(
    sources.map(async ({ name, config, entry, variables, objects }) => {
      const outdir = join(built, name);
      await wrangler([
        "deploy",
        ...(entry === undefined ? [] : [entry]),
        "-c",
        config,
        "--dry-run",
        "--outdir",
        outdir,
      ]);
      return {
        name,
        port: await freePort(),
        options: {
          name,
          compatibilityDate: "2026-10-01",
          compatibilityFlags: ["nodejs_compat"],
          modules: await modulesOf(outdir),
          modulesRoot: outdir,
          bindings: variables,
          d1Databases: { DB: "clawcloud" },
          queueProducers: { JOBS: "clawcloud-jobs" },
          durableObjects: Object.fromEntries(
            Object.entries(objects).map(([binding, { className, of }]) => [
              binding,
              { className, useSQLite: true, ...(of === undefined ? {} : { scriptName: of }) },
            ]),
          ),
        },
      };
    }),
  );
  const options: V4MiniflareOptions = {
    log: new Log(LogLevel.ERROR),
    cf: false,
    ...(process.env["INSPECT"] ? { inspectorPort: 9333 } : {}),
    stripDisablePrettyError: false,
    // The Workers print in batches of lines.
    handleStructuredLogs: ({ timestamp, message }) => {
      for (const line of message.split("\n")) onLog({ time: timestamp, message: line });
    },
    workers: workers.map((worker) => ({
      ...worker.options,
      stripCfConnectingIp: false,
      unsafeDirectSockets: [{ host: "127.0.0.1", port: worker.port }],
    })),
  };
  const miniflare = new Miniflare({
    ...convertV4MiniflareOptions(options),
    ...(persistTo === undefined ? {} : { resourcePersistencePath: persistTo }),
  });
  await miniflare.ready;
  const database = await miniflare.getD1Database("DB", sources[0]?.name);
  await migrate(database);
  return {
    miniflare,
    database,
    url: (name: string) => `http://127.0.0.1:${workers.find((worker) => worker.name === name)?.port}`,
    stop: async () => {
      await miniflare.dispose();
      await rm(built, { recursive: true });
    },
  };
}
export type BareWorkers = Awaited<ReturnType<typeof startBareWorkers>>;

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

async function migrate(database: Database): Promise<void> {
  const made = await database.prepare("SELECT 1 FROM sqlite_master WHERE name = 'vms'").first();
  if (made !== null) return;
  for (const { queries } of await readD1Migrations(join(ROOT, "migrations"))) {
    await database.batch(queries.map((query) => database.prepare(query)));
  }
}

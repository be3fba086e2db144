// What the two Workers will run with, as the files of this checkout say.
import { existsSync, readFileSync } from "node:fs";
import { unstable_readConfig } from "wrangler";
import { edgeConfig, provisionerConfig } from "../config.ts";

export const WORKERS = {
  edge: { file: "wrangler.toml", secrets: ".secrets/edge.json", parse: edgeConfig },
  provisioner: {
    file: "src/provisioner/wrangler.toml",
    secrets: ".secrets/provisioner.json",
    parse: provisionerConfig,
  },
} as const;
export type WorkerName = keyof typeof WORKERS;

export type Environment = {
  vars: Record<string, unknown>;
  /** Null without a file: the secrets at Cloudflare stay as they are. */
  secrets: Record<string, string> | null;
  /** For each declared binding something that passes the Worker's own check. */
  bindings: Record<string, unknown>;
  databases: { name: string; id: string | undefined }[];
};

/** What we read of wrangler's configuration. */
type Declared = {
  vars: Record<string, unknown>;
  d1_databases: { binding: string; database_name?: string; database_id?: string }[];
  queues: { producers?: { binding: string }[] };
  durable_objects: { bindings: { name: string }[] };
};

export function readEnvironment(worker: WorkerName): Environment {
  const { file, secrets } = WORKERS[worker];
  const config = unstable_readConfig({ config: file }) as Declared;
  return {
    vars: config.vars,
    secrets: existsSync(secrets) ? (readJson(secrets) as Record<string, string>) : null,
    bindings: {
      ...Object.fromEntries(config.d1_databases.map(({ binding }) => [binding, { prepare: () => null }])),
      ...Object.fromEntries((config.queues.producers ?? []).map(({ binding }) => [binding, { send: () => null }])),
      ...Object.fromEntries(config.durable_objects.bindings.map(({ name }) => [name, { idFromName: () => null }])),
    },
    databases: config.d1_databases.map(({ database_name, database_id }) => ({
      name: database_name ?? "",
      id: database_id,
    })),
  };
}

/** A file's JSON. Its parser's own message would quote what stands beside the fault, which may be a key. */
export function readJson(file: string): unknown {
  const text = readFileSync(file, "utf8");
  try {
    return JSON.parse(text);
  } catch {
    throw new Error(`${file} is not valid JSON`);
  }
}

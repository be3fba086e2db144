// What the two Workers will run with, as the files of this checkout say.
import { existsSync } from "node:fs";
import { unstable_readConfig } from "wrangler";
import { edgeConfig, provisionerConfig } from "../config.ts";
import { EDGE_SECRETS, PROVISIONER_SECRETS, readJson } from "./secrets.ts";

export const WORKERS = {
  edge: { file: "wrangler.toml", secrets: EDGE_SECRETS, parse: edgeConfig },
  provisioner: {
    file: "src/provisioner/wrangler.toml",
    secrets: PROVISIONER_SECRETS,
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

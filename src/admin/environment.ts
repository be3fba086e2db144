// What the two Workers will run with, as the files of this checkout say.
import { existsSync } from "node:fs";
import { join } from "node:path";
import { unstable_readConfig } from "wrangler";
import { z } from "zod";
import { edgeConfig } from "../edge/config.ts";
import { provisionerConfig } from "../provisioner/config.ts";
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
  /** Every queue that it sends to, takes from or gives dead letters to. */
  queues: string[];
};

/** What we read of wrangler's configuration. */
type Declared = {
  vars: Record<string, unknown>;
  d1_databases: { binding: string; database_name?: string; database_id?: string }[];
  queues: {
    producers?: { binding: string; queue: string }[];
    consumers?: { queue: string; dead_letter_queue?: string }[];
  };
  durable_objects: { bindings: { name: string }[] };
};

/** `folder`: the checkout, where it is not the working directory. */
export function readEnvironment(worker: WorkerName, folder = "."): Environment {
  const { file, ...paths } = WORKERS[worker];
  const secrets = join(folder, paths.secrets);
  const config = unstable_readConfig({ config: join(folder, file) }) as Declared;
  const { producers = [], consumers = [] } = config.queues;
  return {
    vars: config.vars,
    secrets: existsSync(secrets) ? readSecrets(secrets) : null,
    bindings: {
      ...Object.fromEntries(config.d1_databases.map(({ binding }) => [binding, { prepare: () => null }])),
      ...Object.fromEntries(producers.map(({ binding }) => [binding, { send: () => null }])),
      ...Object.fromEntries(config.durable_objects.bindings.map(({ name }) => [name, { idFromName: () => null }])),
    },
    databases: config.d1_databases.map(({ database_name, database_id }) => ({
      name: database_name ?? "",
      id: database_id,
    })),
    queues: [
      ...producers.map(({ queue }) => queue),
      ...consumers.flatMap(({ queue, dead_letter_queue: dead }) => [queue, ...(dead === undefined ? [] : [dead])]),
    ],
  };
}

/** A value of another kind would be uploaded as who knows what, and be taken for no secret here. */
function readSecrets(file: string): Record<string, string> {
  const secrets = z.record(z.string(), z.string()).safeParse(readJson(file));
  if (secrets.success) return secrets.data;
  throw new Error(`${file} must be a JSON object whose values are strings`);
}

// A world that is kept from one run to the next: its folder, and what its parts need to go on. `npm run dev` has one.
import { createHash, randomBytes } from "node:crypto";
import { mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { secp256k1 } from "@noble/curves/secp256k1.js";
import { makeAdminKey } from "../../src/credentials/admin-key.ts";
import type { BareWorkers } from "./bare-workers.ts";
import { freePort } from "./ports.ts";
import type { RunpodSaved } from "./runpod.ts";
import type { VultrSaved } from "./vultr.ts";

type Identity = Awaited<ReturnType<typeof makeIdentity>>;
type State = Identity & {
  /** Hex of the data key's private half. */
  dataKey: string;
  bootstrapKey: string;
  adminKey?: string;
  /** Digests of the migrations that its database has. */
  migrations: string[];
  vultr?: VultrSaved;
  runpod?: RunpodSaved;
};
export type Kept = Awaited<ReturnType<typeof openKept>>;

export const makeDataKey = (): string => Buffer.from(secp256k1.utils.randomSecretKey()).toString("hex");

/** Where machines listen, and the keys of the world's accounts at its vendors and its nodes. */
export const makeIdentity = async () => ({
  sshPort: await freePort(),
  keys: {
    vultr: `vultr-${randomBytes(12).toString("hex")}`,
    runpod: `rpa_${randomBytes(12).toString("hex")}`,
    // No rule of the log's would know it for a key: it is kept out by what is told of errors at all (hard case 23).
    rpc: randomBytes(12).toString("hex"),
  },
});

/** Opens the world of a folder, or begins one there. */
export async function openKept(folder: string, reset: boolean) {
  if (reset) rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  const file = join(folder, "world.json");
  const state: State = readState(file) ?? {
    ...(await makeIdentity()),
    dataKey: makeDataKey(),
    bootstrapKey: makeAdminKey(),
    migrations: [],
  };
  const save = (changed: Partial<State>): void => {
    Object.assign(state, changed);
    // A write that is cut off leaves the file as it was.
    writeFileSync(`${file}.new`, JSON.stringify(state));
    renameSync(`${file}.new`, file);
  };
  return {
    state,
    save,
    chainFile: join(folder, "chain.json"),
    workersFolder: join(folder, "workers"),
    /** Applies the migrations that have come since; a new database has all. */
    migrate: async (database: BareWorkers["database"], migrations: readonly string[][]): Promise<void> => {
      const digests = migrations.map((queries) => createHash("sha256").update(JSON.stringify(queries)).digest("hex"));
      const applied = state.migrations.length;
      if (state.migrations.some((digest, index) => digest !== digests[index])) {
        throw new Error(
          "a migration that this world's database has was changed: begin another by npm run dev -- --reset",
        );
      }
      const missing = applied === 0 ? [] : migrations.slice(applied).flat();
      if (missing.length > 0) await database.prepare(missing.join(";\n")).run();
      if (digests.length > applied) save({ migrations: digests });
    },
  };
}

function readState(file: string): State | undefined {
  try {
    return JSON.parse(readFileSync(file, "utf8")) as State;
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ENOENT") return undefined;
    throw new Error(`${file} can't be read: begin another world by npm run dev -- --reset`, { cause: error });
  }
}

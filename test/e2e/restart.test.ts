// What the guards know outlives the runtime: workerd is ended and started anew over the same storage.
import { cpSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { deserialize } from "node:v8";
import { secp256k1 } from "@noble/curves/secp256k1.js";
import { afterAll, expect, test } from "vitest";
import { LIMITS } from "../../src/edge/access/limits.ts";
import { startBareWorkers } from "../world/bare-workers.ts";
import { freePort } from "../world/ports.ts";
import { EDGE_UNDER_LOAD } from "../world/shop.ts";

const WAIT_MS = 120_000;
/** As the table has it, in a window that no machine is too slow for. */
const VMS = { requests: LIMITS.vms.requests, windowSeconds: 1_800 };
const folder = mkdtempSync(join(tmpdir(), "clawcloud-restart-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

test("limits at their edge and bans survive the end of the runtime", async () => {
  const { RATE_LIMITS: _none, ...variables } = EDGE_UNDER_LOAD.variables;
  const edge = {
    ...EDGE_UNDER_LOAD,
    variables: {
      ...variables,
      RATE_LIMITS: `vms=${VMS.requests}/${VMS.windowSeconds}`,
      PUBLIC_URLS: "https://api.example",
      // Nothing here gets as far as the chain.
      RPC_URLS: `http://127.0.0.1:${await freePort()}`,
      DATA_PRIVATE_KEY: Buffer.from(secp256k1.utils.randomSecretKey()).toString("hex"),
    },
  };
  const start = async () => {
    const workers = await startBareWorkers([edge], () => {}, { persistTo: folder });
    const ask = async (client: string, path: string) => {
      const answer = await fetch(`${workers.url("edge")}${path}`, { headers: { "cf-connecting-ip": client } });
      await answer.text();
      return answer.status;
    };
    return { ask, stop: workers.stop };
  };

  const first = await start();
  const { credentials } = LIMITS;
  const wallet = `/vms/0x${"1".repeat(40)}`;
  for (let count = 1; count < credentials.requests; count++) {
    expect(await first.ask("203.0.113.1", "/credentials/1")).toBe(401);
  }
  for (let count = 1; count < VMS.requests; count++) expect(await first.ask("203.0.113.2", wallet)).toBe(200);
  for (let count = 0; count < 10; count++) expect(await first.ask("203.0.113.3", "/tiers?x=<script>")).toBe(400);
  expect(await first.ask("203.0.113.3", wallet)).toBe(403);
  // A guard keeps minute windows to itself for five seconds.
  const written = () => Math.max(...requestsWritten("vms"));
  await expect.poll(written, { timeout: WAIT_MS, interval: 500 }).toBe(VMS.requests - 1);
  await first.stop();

  const second = await start();
  try {
    // One was left of each.
    expect(await second.ask("203.0.113.1", "/credentials/1")).toBe(401);
    expect(await second.ask("203.0.113.1", "/credentials/1")).toBe(429);
    expect(await second.ask("203.0.113.3", wallet)).toBe(403);
    expect(await second.ask("203.0.113.2", wallet)).toBe(200);
    expect(await second.ask("203.0.113.2", wallet)).toBe(429);
  } finally {
    await second.stop();
  }
});

/** How many requests of a route each guard has written: out of a copy of the runtime's own files. */
function requestsWritten(route: string): number[] {
  const copy = mkdtempSync(join(tmpdir(), "clawcloud-restart-"));
  try {
    cpSync(folder, copy, { recursive: true });
    return readdirSync(copy, { recursive: true, withFileTypes: true })
      .filter(({ name, parentPath }) => name.endsWith(".sqlite") && parentPath.includes("IpGuard"))
      .map(({ name, parentPath }) => minutesIn(join(parentPath, name))[route]?.times.length ?? 0);
  } finally {
    rmSync(copy, { recursive: true });
  }
}

function minutesIn(file: string): Record<string, { times: number[] }> {
  const database = new DatabaseSync(file);
  try {
    const row = database.prepare("SELECT value FROM _cf_KV WHERE key = 'minutes'").get();
    return row === undefined ? {} : deserialize(row["value"] as Uint8Array);
  } catch {
    // Of an object that has written nothing yet, or copied in the middle of a write.
    return {};
  } finally {
    database.close();
  }
}

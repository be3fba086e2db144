// What the guards know outlives the runtime: workerd is ended and started anew over the same storage.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { secp256k1 } from "@noble/curves/secp256k1.js";
import { afterAll, expect, test } from "vitest";
import { LIMITS } from "../../src/access/limits.ts";
import { startBareWorkers } from "../world/bare-workers.ts";
import { freePort } from "../world/ports.ts";
import { EDGE_UNDER_LOAD } from "../world/shop.ts";

/** Longer than a guard keeps minute windows to itself. */
const FLUSH_MS = 6_000;
const folder = mkdtempSync(join(tmpdir(), "clawcloud-restart-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

test("limits at their edge and bans survive the end of the runtime", async () => {
  const { RATE_LIMITS: _none, ...variables } = EDGE_UNDER_LOAD.variables;
  const edge = {
    ...EDGE_UNDER_LOAD,
    variables: {
      ...variables,
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
  const { credentials, vms } = LIMITS;
  const wallet = `/vms/0x${"1".repeat(40)}`;
  for (let count = 1; count < credentials.requests; count++) {
    expect(await first.ask("203.0.113.1", "/credentials/1")).toBe(401);
  }
  for (let count = 1; count < vms.requests; count++) expect(await first.ask("203.0.113.2", wallet)).toBe(200);
  for (let count = 0; count < 10; count++) expect(await first.ask("203.0.113.3", "/tiers?x=<script>")).toBe(400);
  expect(await first.ask("203.0.113.3", wallet)).toBe(403);
  const flushed = Date.now();
  await new Promise((resolve) => setTimeout(resolve, FLUSH_MS));
  await first.stop();

  const second = await start();
  try {
    // One was left of each.
    expect(await second.ask("203.0.113.1", "/credentials/1")).toBe(401);
    expect(await second.ask("203.0.113.1", "/credentials/1")).toBe(429);
    expect(await second.ask("203.0.113.3", wallet)).toBe(403);
    if (Date.now() - flushed > (vms.windowSeconds - 10) * 1_000) throw new Error("the restart took a whole window");
    expect(await second.ask("203.0.113.2", wallet)).toBe(200);
    expect(await second.ask("203.0.113.2", wallet)).toBe(429);
  } finally {
    await second.stop();
  }
});

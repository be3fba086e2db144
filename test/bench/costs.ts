// What one request costs, counted and not timed: the same figures on every machine.

import { fixedHeaders, freshHeaders } from "../world/agent.ts";
import { EDGE_UNDER_LOAD, openShop, PUBLIC_URL, TOKENS } from "../world/shop.ts";
import { table } from "./figures.ts";
import type { RequestBill } from "./metered-edge.ts";
import { payment } from "./payments.ts";

/** Longer than a guard keeps minute windows to itself. */
const FLUSH_MS = 6_000;

/** Prints D1 round trips, rows read and written, object calls and RPC calls of each kind of request. */
export async function benchCosts(): Promise<void> {
  const shop = await openShop([{ ...EDGE_UNDER_LOAD, entry: "test/bench/metered-edge.ts" }]);
  const { workers, owner, tokenId } = shop;
  const rows: (string | number)[][] = [];
  const ask = async (name: string, path: string, headers: Record<string, string> = {}, times = 1) => {
    const send = () =>
      fetch(`${workers.url("edge")}${path}`, { headers: { "cf-connecting-ip": "203.0.113.1", ...headers } });
    for (let before = 1; before < times; before++) await (await send()).text();
    const answer = await send();
    const bill = JSON.parse(answer.headers.get("x-bill") ?? "{}") as RequestBill;
    await answer.text();
    rows.push([
      name,
      answer.status,
      bill.roundTrips,
      bill.rowsRead,
      bill.rowsWritten,
      bill.objectCalls,
      bill.rpcCalls,
      bill.guardRows,
      bill.guardBytes,
    ]);
  };
  try {
    await ask("/health", "/health");
    await ask("/health, head cached", "/health");
    await ask("/tiers, cold", "/tiers");
    await ask("/tiers, warm", "/tiers");
    await ask("/status/:tokenId, 1 attempt", `/status/${tokenId}`);
    await ask("/status/:tokenId, unknown", "/status/999999");
    await ask("/status/:tokenId, unknown again", "/status/999999");
    await ask(`/vms/:address, ${TOKENS} rows`, `/vms/${owner.address}`);
    await ask("/credentials, first delivery", `/credentials/${tokenId}`, await fixedHeaders(owner, tokenId));
    await ask("/credentials, fixed form again", `/credentials/${tokenId}`, await fixedHeaders(owner, tokenId));
    const fresh = async () => freshHeaders(PUBLIC_URL, owner, tokenId);
    await ask("/credentials, fresh form, first", `/credentials/${tokenId}`, await fresh());
    await ask("/credentials, fresh form again", `/credentials/${tokenId}`, await fresh());
    await ask("/credentials, no signature", `/credentials/${tokenId}`);
    const paid = `/x402/vm-credentials?tokenId=${tokenId}`;
    await ask("/x402/vm-credentials, quote", paid);
    await ask("/x402/vm-credentials, paid", paid, await payment(`${workers.url("edge")}${paid}`, owner));
    await ask("a malformed token id", "/status/x");
    await ask("an unknown path", "/x");
    await ask("a banned client, the tenth attack", "/tiers?x=<script>", { "cf-connecting-ip": "203.0.113.2" }, 10);
    await ask("a banned client", "/tiers", { "cf-connecting-ip": "203.0.113.2" });
    const header = ["request", "status", "D1 trips", "rows read", "rows written", "object calls", "RPC calls"];
    console.log(table([...header, "guard rows", "guard bytes"], rows));
    await guardOverTime(workers.url("edge"));
  } finally {
    await shop.close();
  }
}

/** What one client's guard writes while it stays within its minute limits: nothing on the way of an answer. */
async function guardOverTime(url: string): Promise<void> {
  const headers = { "cf-connecting-ip": "203.0.113.3" };
  const requests = 100;
  let onTheWay = 0;
  // What the clients before it have left to flush is not on its bill.
  await new Promise((resolve) => setTimeout(resolve, FLUSH_MS));
  for (let count = 0; count < requests; count++) {
    const answer = await fetch(`${url}/tiers`, { headers });
    onTheWay += (JSON.parse(answer.headers.get("x-bill") ?? "{}") as RequestBill).guardRows;
    await answer.text();
  }
  await new Promise((resolve) => setTimeout(resolve, FLUSH_MS));
  const { guardRows, guardBytes } = (await (await fetch(`${url}/bill`)).json()) as RequestBill;
  console.log(
    `\n${requests} requests of one client within its limit: ${onTheWay} rows on their way, then ${guardRows}: one by the timer for these 5 s, and the alarm, once per object (${guardBytes} bytes)`,
  );
}

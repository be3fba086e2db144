// What one request costs, and what an order and a refund do from end to end: counted and not timed, the same figures on
// every machine.
import { execFile } from "node:child_process";
import { promisify } from "node:util";
import type { ScenarioCosts } from "../sim/costs.ts";
import { fixedHeaders, freshHeaders } from "../world/agent.ts";
import { fetchAgain } from "../world/http.ts";
import { EDGE_UNDER_LOAD, openShop, TOKENS } from "../world/shop.ts";
import { printRows, table } from "./figures.ts";
import type { RequestBill } from "./metered-edge.ts";
import { payment } from "./payments.ts";

/** Longer than a guard keeps minute windows to itself. */
const FLUSH_MS = 6_000;

/** Prints what an order and a refund ask for, requests and jobs together. */
export async function benchOrderCosts(): Promise<void> {
  const sim = ["--disable-warning=ExperimentalWarning", "--import", "./test/sim/hooks.ts", "test/sim/costs.ts"];
  const { stdout } = await promisify(execFile)(process.execPath, sim);
  const rows = JSON.parse(stdout) as ScenarioCosts[];
  console.log(
    table(
      ["from end to end", "worlds", "D1 statements", "D1 trips", "RPC calls"],
      rows.map(({ name, ended, statements, trips, rpcCalls }) => [name, ended, statements, trips, rpcCalls]),
    ),
  );
}

/** Prints D1 round trips, rows read and written, object calls and RPC calls of each kind of request. */
export async function benchCosts(): Promise<void> {
  const shop = await openShop([{ ...EDGE_UNDER_LOAD, entry: "test/bench/metered-edge.ts" }]);
  const { workers, owner, tokenId } = shop;
  type Headers = Record<string, string>;
  type Asked = [name: string, path: string, headers?: Headers | (() => Promise<Headers>), times?: number];
  const ask = async ([name, path, given = {}, times = 1]: Asked) => {
    const headers = typeof given === "function" ? await given() : given;
    const send = () =>
      fetch(`${workers.url("edge")}${path}`, { headers: { "cf-connecting-ip": "203.0.113.1", ...headers } });
    for (let before = 1; before < times; before++) await (await send()).text();
    const answer = await send();
    const bill = await billOf(name, answer);
    return [
      name,
      answer.status,
      bill.roundTrips,
      bill.rowsRead,
      bill.rowsWritten,
      bill.objectCalls,
      bill.rpcCalls,
      bill.guardRows,
      bill.guardBytes,
    ];
  };
  try {
    const fixed = () => fixedHeaders(owner, tokenId);
    const fresh = () => freshHeaders(shop.publicUrl, owner, tokenId);
    const paid = `/x402/vm-credentials?tokenId=${tokenId}`;
    const other = { "cf-connecting-ip": "203.0.113.2" };
    const asked: Asked[] = [
      ["/health", "/health"],
      ["/health, again within a second", "/health"],
      ["/tiers, cold", "/tiers"],
      ["/tiers, warm", "/tiers"],
      ["/status/:tokenId, 1 attempt", `/status/${tokenId}`],
      ["/status/:tokenId, unknown", "/status/999999"],
      ["/status/:tokenId, unknown again", "/status/999999"],
      [`/vms/:address, ${TOKENS} rows`, `/vms/${owner.address}`],
      ["/credentials, first delivery", `/credentials/${tokenId}`, fixed],
      ["/credentials, fixed form again", `/credentials/${tokenId}`, fixed],
      ["/credentials, fresh form, first", `/credentials/${tokenId}`, fresh],
      ["/credentials, fresh form again", `/credentials/${tokenId}`, fresh],
      ["/credentials, no signature", `/credentials/${tokenId}`],
      ["/x402/vm-credentials, quote", paid],
      ["/x402/vm-credentials, paid", paid, () => payment(`${workers.url("edge")}${paid}`, owner)],
      ["a malformed token id", "/status/x"],
      ["an unknown path", "/x"],
      ["a banned client, the tenth attack", "/tiers?x=<script>", other, 10],
      ["a banned client", "/tiers", other],
    ];
    const header = ["request", "status", "D1 trips", "rows read", "rows written", "object calls", "RPC calls"];
    // What fails here is told at the end: the guard is watched all the same.
    const counted = printRows([...header, "guard rows", "guard bytes"], asked, ask);
    await counted.catch(() => undefined);
    await guardOverTime(workers.url("edge"));
    await counted;
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
    const answer = await fetchAgain(`${url}/tiers`, { headers });
    onTheWay += (await billOf("/tiers within the limit", answer)).guardRows;
  }
  await new Promise((resolve) => setTimeout(resolve, FLUSH_MS));
  const { guardRows, guardBytes } = (await (await fetchAgain(`${url}/bill`)).json()) as RequestBill;
  console.log(
    `\n${requests} requests of one client within its limit: ${onTheWay} rows on their way, then ${guardRows}: one by the timer for these 5 s, and the alarm, once per object (${guardBytes} bytes)`,
  );
}

/** What an answer cost; its body is read. */
async function billOf(name: string, answer: Response): Promise<RequestBill> {
  const text = await answer.text();
  const told = answer.headers.get("x-bill");
  if (told === null) throw new Error(`${name}: ${answer.status} without a bill: ${text}`);
  return JSON.parse(told) as RequestBill;
}

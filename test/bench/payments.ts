// What x402 costs: quotes against their floor, payments through a real facilitator, and what the gate adds to an answer.
import type { LocalAccount } from "viem/accounts";
import { freshHeaders } from "../world/agent.ts";
import { authorize, paymentHeaderV2, readQuote } from "../world/payer.ts";
import { EDGE_APART, FLOOR_APART, OBJECTS_APART, openShop } from "../world/shop.ts";
import { median, missing, printRows } from "./figures.ts";
import { address, COMPARED, compare } from "./routes.ts";

const AT_ONCE = 8;

/** Prints quotes/s beside their floor, payments/s, and the time of an answer with the gate and without. */
export async function benchPayments(rounds: number, payments: number): Promise<void> {
  const shop = await openShop([EDGE_APART, OBJECTS_APART, FLOOR_APART]);
  const { workers, owner, tokenId, chain } = shop;
  try {
    const credentials = `/x402/vm-credentials?tokenId=${tokenId}`;
    const order = {
      path: "/x402/purchase-compute",
      method: "POST" as const,
      body: JSON.stringify({ tier: 0, durationDays: 1 }),
    };
    const json = { "content-type": "application/json" };
    const quotes = [
      ["GET /x402/vm-credentials, 402", (client: number) => ({ path: credentials, headers: address(client) })],
      [
        "POST /x402/purchase-compute, 402",
        (client: number) => ({ ...order, headers: { ...address(client), ...json } }),
      ],
    ] as const;
    // What fails here is told at the end: payments are measured all the same.
    const quoted = printRows(COMPARED, quotes, async ([name, request]) => {
      await shop.scan();
      return compare(name, workers, 1_600, request, rounds, 402);
    });
    await quoted.catch(() => undefined);

    // A block for each transaction: what is measured is the gate and not a block's time.
    await chain.node.setIntervalMining({ interval: 0 });
    await chain.node.setAutomine(true);
    await shop.scan();
    const url = `${workers.url("edge")}${credentials}`;
    const sign = () => payment(url, owner);
    const headers = await Promise.all(Array.from({ length: payments }, sign));
    const failures: unknown[] = [];
    const began = performance.now();
    const waiting = [...headers.entries()];
    await Promise.all(
      Array.from({ length: AT_ONCE }, async () => {
        for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) {
          await pay(url, { ...address(next[0]), ...next[1] }).catch((error: unknown) => failures.push(error));
        }
      }),
    );
    const seconds = (performance.now() - began) / 1_000;
    console.log(
      `\n${payments} payments by ${AT_ONCE} at once, each verified, settled on a chain that mines at once, and seen there: ${((payments - failures.length) / seconds).toFixed(1)} a second`,
    );
    for (const line of missing(failures.length, payments, "not taken; the first:")) console.log(line, failures[0]);

    const times: Record<"gate" | "plain", number[]> = { gate: [], plain: [] };
    for (let round = 0; round < rounds * 4; round++) {
      for (const side of round % 2 === 0 ? (["gate", "plain"] as const) : (["plain", "gate"] as const)) {
        const fresh = { ...address(round), ...(await freshHeaders(shop.publicUrl, owner, tokenId)) };
        const sent = side === "gate" ? { ...fresh, ...(await sign()) } : fresh;
        const from = performance.now();
        await pay(side === "gate" ? url : `${workers.url("edge")}/credentials/${tokenId}`, sent).then(
          () => times[side].push(performance.now() - from),
          (error: unknown) => console.log(`an answer of ${rounds * 8} failed:`, error),
        );
      }
    }
    const [gate, plain] = [median(times.gate), median(times.plain)];
    console.log(
      `one paid answer: ${gate.toFixed(1)} ms, the same from /credentials: ${plain.toFixed(1)} ms; the gate adds ${(gate - plain).toFixed(1)} ms (medians of ${times.gate.length} and ${times.plain.length}, side by side)`,
    );
    await quoted;
  } finally {
    await shop.close();
  }
}

export async function payment(url: string, payer: LocalAccount): Promise<Record<string, string>> {
  const [requirement] = readQuote(await fetch(url, { headers: address(0) })).accepts;
  if (requirement === undefined) throw new Error("no demand");
  return { "payment-signature": paymentHeaderV2(requirement, await authorize(payer, requirement)) };
}

async function pay(url: string, headers: Record<string, string>): Promise<void> {
  const answer = await fetch(url, { headers });
  const text = await answer.text();
  if (answer.status !== 200) throw new Error(`${answer.status} ${text}`);
}

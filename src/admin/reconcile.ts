// `npm run admin -- payments reconcile`: as many ranges as it takes, added up.
import { formatUsdc } from "../chain/contract.ts";
import { type Connection, callJson, PAUSE_MS } from "./api.ts";

const RANGE_BLOCKS = 10_000;

type Side = { transfers: number; sum: string; explained: string; unexplained: unknown[] };
type Books = { fromBlock: number; toBlock: number; incoming: Side; outgoing: Side; missing: unknown[] };

const usdc6 = (amount: string): bigint => BigInt(Math.round(Number(amount) * 1e6));
const add = (a: Side, b: Side): Side => ({
  transfers: a.transfers + b.transfers,
  sum: formatUsdc(usdc6(a.sum) + usdc6(b.sum)),
  explained: formatUsdc(usdc6(a.explained) + usdc6(b.explained)),
  unexplained: [...a.unexplained, ...b.unexplained],
});

/** `differs`: a transfer that no row explains, or a row that no transfer does. */
export async function reconcileAll(
  connection: Connection,
  first: number | undefined,
  last: number | undefined,
): Promise<{ books: Books; differs: boolean }> {
  const read = async (fromBlock: number | undefined, toBlock: number | undefined): Promise<Books> => {
    const query = new URLSearchParams();
    if (fromBlock !== undefined) query.set("fromBlock", String(fromBlock));
    if (toBlock !== undefined) query.set("toBlock", String(toBlock));
    return (await callJson(connection, "GET", `/admin/payments/reconcile?${query}`)) as Books;
  };
  // The last range tells where final history ends; the others go back from there.
  let books = await read(
    first === undefined || last === undefined ? undefined : Math.max(first, last - RANGE_BLOCKS + 1),
    last,
  );
  // Asked without a first block, it may begin before the one that is wanted.
  if (first !== undefined && books.fromBlock < first) books = await read(first, books.toBlock);
  while (first !== undefined && books.fromBlock > first) {
    await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
    const earlier = await read(Math.max(first, books.fromBlock - RANGE_BLOCKS), books.fromBlock - 1);
    books = {
      fromBlock: earlier.fromBlock,
      toBlock: books.toBlock,
      incoming: add(earlier.incoming, books.incoming),
      outgoing: add(earlier.outgoing, books.outgoing),
      missing: [...earlier.missing, ...books.missing],
    };
  }
  const { incoming, outgoing, missing } = books;
  return { books, differs: incoming.unexplained.length + outgoing.unexplained.length + missing.length > 0 };
}

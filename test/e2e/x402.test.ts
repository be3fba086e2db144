// Agents that know x402 and nothing else, with the stock clients of both versions, against the local world: a real chain, a
// real facilitator, real queues, machines that answer SSH. Agents of their own buy at the same time; what changes the world
// for everybody comes last.
import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex, utf8ToBytes } from "@noble/hashes/utils.js";
import { validateDiscoveryExtension } from "@x402/extensions/bazaar";
import {
  appendPaymentIdentifierToExtensions,
  generatePaymentId,
  validatePaymentIdentifier,
} from "@x402/extensions/payment-identifier";
import { decrypt } from "eciesjs";
import { parseAbi } from "viem";
import { afterAll, beforeAll, expect, test } from "vitest";
import { CONTRACT_ADDRESS, USDC_ADDRESS } from "../world/addresses.ts";
import { buy, type Credentials, fetchCredentials, waitForStatus } from "../world/agent.ts";
import { usdcAbi } from "../world/chain.ts";
import { askAgain, fetchAgain } from "../world/http.ts";
import { authorize, paymentHeaderV2, readQuote } from "../world/payer.ts";
import { payFetch, payFetchV1 } from "../world/payer-clients.ts";
import { makeLoginPair, runOverSsh } from "../world/ssh-client.ts";
import { startWorld, type World } from "../world/world.ts";

type Purchase = {
  purchaseId: string;
  status: string;
  step: string;
  charged: boolean;
  tokenId: string;
  statusUrl: string;
};
const PRICE = 500_000n;
const WAIT_MS = 120_000;

let world: World;
let soldOut: { before: bigint; answer: Promise<Response> };
beforeAll(async () => {
  world = await startWorld({
    // Everybody here calls from one address.
    edge: { RATE_LIMITS: "x402=6000/60,credentials=6000/60,status=6000/60", SCAN_INTERVAL_MS: "500" },
    provisioner: { SSH_KEY_ALGORITHM: "ed25519" },
    vultr: { bootMs: { active: 300, ok: 600, sshd: 800, configured: 1_100 } },
  });
  // Nobody else here wants a GPU: the last test looks at what became of the order.
  world.runpod.server.addFault({ call: "create", kind: "sold_out" });
  const before = await balanceOf(3);
  soldOut = { before, answer: payFetch(agent(3), send)(machines(), order({ tier: 4, durationDays: 1 })) };
  soldOut.answer.catch(() => undefined);
});
afterAll(() => world?.stop());

const agent = (index: number) => {
  const account = world.chain.agents[index];
  if (account === undefined) throw new Error(`there is no agent ${index}`);
  return account;
};
const balanceOf = (index: number) =>
  world.chain.reader.readContract({
    address: USDC_ADDRESS,
    abi: usdcAbi,
    functionName: "balanceOf",
    args: [agent(index).address],
  }) as Promise<bigint>;
const order = (body: object | string, headers: Record<string, string> = {}): RequestInit => ({
  method: "POST",
  headers: { "content-type": "application/json", ...headers },
  body: typeof body === "string" ? body : JSON.stringify(body),
});
/** A signed payment is the same purchase each time. */
const send: typeof fetch = (...request) => {
  const sent = new Request(...request);
  return askAgain(() => fetch(sent.clone()));
};
const machines = () => `${world.url}/x402/purchase-compute`;

const pause = () => new Promise((resolve) => setTimeout(resolve, 300));
const read = async (statusUrl: string) => (await (await fetchAgain(statusUrl)).json()) as Purchase;
async function poll(statusUrl: string, isDone: (purchase: Purchase) => boolean): Promise<Purchase> {
  for (const until = Date.now() + WAIT_MS; ; await pause()) {
    const purchase = await read(statusUrl);
    if (isDone(purchase)) return purchase;
    if (Date.now() > until) throw new Error(`a purchase does not come to an end: ${JSON.stringify(purchase)}`);
  }
}
/** From here on the login is there for the payer, or it is asked to come again. */
const isTheirs = ({ status }: Purchase) => status === "settled";
const credentialsOf = (index: number, tokenId: string) => fetchCredentials(world.url, agent(index), Number(tokenId));

test.concurrent("@x402/fetch buys a machine: charged once it answers, the token is the payer's, a shell on it", async () => {
  const before = await balanceOf(0);
  const answer = await payFetch(agent(0), send)(machines(), order({ tier: 0, durationDays: 1 }));
  expect(answer.status).toBe(202);
  const accepted = (await answer.json()) as Purchase;
  expect(accepted).toMatchObject({ status: "authorized", charged: false });
  let [purchase, balance] = [accepted, before];
  while (["check", "buy", "provision"].includes(purchase.step)) {
    expect([purchase.charged, balance]).toEqual([false, before]);
    await pause();
    // The balance first: it is then no younger than the step.
    balance = await balanceOf(0);
    purchase = await read(accepted.statusUrl);
  }
  const bought = await poll(accepted.statusUrl, isTheirs);
  expect(await balanceOf(0)).toBe(before - PRICE);
  const credentials = await credentialsOf(0, bought.tokenId);
  expect((await runOverSsh(credentials, "uname -a")).output).toContain("Linux clawcloud-local-");
});

test.concurrent("x402-fetch, of version 1, buys a machine with a login key of its own, which we never see the other half of", async () => {
  const pair = makeLoginPair();
  const before = await balanceOf(1);
  const body = JSON.stringify({ tier: 0, durationDays: 1, sshPublicKey: pair.public });
  const signature = await agent(1).signMessage({
    message: `ClawCloud Purchase: ${bytesToHex(sha256(utf8ToBytes(body)))}`,
  });
  const answer = await payFetchV1(agent(1), send)(machines(), order(body, { "X-Body-Signature": signature }));
  expect(answer.status).toBe(202);
  const bought = await poll(((await answer.json()) as Purchase).statusUrl, isTheirs);
  expect(await balanceOf(1)).toBe(before - PRICE);
  const credentials = await credentialsOf(1, bought.tokenId);
  expect(credentials.ssh.privateKey).toBeNull();
  const mine = { ...credentials, ssh: { ...credentials.ssh, privateKey: pair.private } };
  expect(await runOverSsh(mine, "nproc")).toEqual({ output: "1\n", code: 0 });
});

test.concurrent("credentials for a cent, by both clients: sealed to the payer, and the key in it opens the machine", async () => {
  const { tokenId } = await buy(world.chain, agent(2), 0, 1);
  await waitForStatus(world.url, tokenId, ["running"]);
  const before = await balanceOf(2);
  const url = `${world.url}/x402/vm-credentials?tokenId=${tokenId}`;
  for (const pay of [payFetch(agent(2), send), payFetchV1(agent(2), send)]) {
    const answer = await pay(url, {});
    expect(answer.status).toBe(200);
    expect(answer.headers.get("payment-response")).not.toBeNull();
    expect(answer.headers.get("x-payment-response")).not.toBeNull();
    const credentials = (await answer.json()) as Credentials & { sealedPrivateKey: string };
    expect(credentials.ssh.privateKey).toBeNull();
    const sealed = Buffer.from(credentials.sealedPrivateKey.replace("ecc:", "").replaceAll(":", ""), "hex");
    const key = Buffer.from(agent(2).getHdKey().privateKey ?? []);
    const privateKey = Buffer.from(decrypt(key, sealed)).toString();
    const opened = { ...credentials, ssh: { ...credentials.ssh, privateKey } };
    expect(await runOverSsh(opened, "nproc")).toEqual({ output: "1\n", code: 0 });
  }
  expect(await balanceOf(2)).toBe(before - 20_000n);
  const others = await payFetch(agent(3), send)(url);
  expect(others.status).toBe(403);
  expect(await balanceOf(2)).toBe(before - 20_000n);
});

test.concurrent("the demands' discovery metadata and identifier pass the extensions' own validators, and their identifier makes a retry one purchase", async () => {
  const quotes = [
    await send(`${world.url}/x402/vm-credentials?tokenId=1`),
    await send(machines(), order({ tier: 0, durationDays: 1 })),
  ].map(readQuote);
  for (const { extensions } of quotes) {
    expect(validateDiscoveryExtension(extensions?.["bazaar"] as never)).toEqual({ valid: true });
    expect(validatePaymentIdentifier(extensions?.["payment-identifier"])).toEqual({ valid: true });
  }
  const [, quote] = quotes;
  const [requirement] = quote?.accepts ?? [];
  if (quote === undefined || requirement === undefined) throw new Error("no demand");
  const extensions = appendPaymentIdentifierToExtensions(structuredClone(quote.extensions ?? {}), generatePaymentId());
  const purchases = [];
  for (let times = 0; times < 2; times++) {
    const header = paymentHeaderV2(requirement, await authorize(agent(4), requirement), { extensions });
    const answer = await send(machines(), order({ tier: 0, durationDays: 1 }, { "payment-signature": header }));
    expect(answer.status).toBe(202);
    purchases.push(((await answer.json()) as Purchase).purchaseId);
  }
  expect(purchases[1]).toBe(purchases[0]);
  const before = await balanceOf(4);
  await poll(`${world.url}/x402/purchases/${purchases[0]}`, isTheirs);
  expect(await balanceOf(4)).toBe(before - PRICE);
});

test("a facilitator that is down while the machine is made is in nobody's way, and the books match the chain", async () => {
  const before = await balanceOf(0);
  // Not the same order as its first, which was less than a minute ago perhaps.
  const answer = await payFetch(agent(0), send)(machines(), order({ tier: 0, durationDays: 1, region: "europe" }));
  const { statusUrl } = (await answer.json()) as Purchase;
  world.facilitator.setFaults({ call: "verify", kind: "down" }, { call: "settle", kind: "down" });
  await poll(statusUrl, isTheirs);
  expect(await balanceOf(0)).toBe(before - PRICE);
  const refused = await payFetch(agent(1))(machines(), order({ tier: 0, durationDays: 1 }));
  expect(refused.status).toBe(503);
  expect(await refused.json()).toMatchObject({ code: "facilitator_unavailable" });
  world.facilitator.setFaults();
  // Until all of it is final history, which is two blocks behind.
  const { reader } = world.chain;
  const settledBy = await reader.getBlockNumber();
  const finalNumber = async () => (await reader.getBlock({ blockTag: "finalized" })).number;
  await expect.poll(finalNumber, { timeout: WAIT_MS }).toBeGreaterThanOrEqual(settledBy);
  const books = (await (
    await send(`${world.url}/admin/payments/reconcile`, { headers: { "x-api-key": world.adminKey } })
  ).json()) as { incoming: { unexplained: object[] }; outgoing: { unexplained: object[] }; missing: object[] };
  expect(books).toMatchObject({ outgoing: { unexplained: [] }, missing: [] });
  // What the world gave the wallet to begin with is a top-up.
  expect(books.incoming.unexplained).toHaveLength(1);
});

test("a tier that is sold out the whole time costs nothing: the order is let go, and the token stays the shop's", async () => {
  // Ordered before the first test.
  const { before } = soldOut;
  const answer = await soldOut.answer;
  expect(answer.status).toBe(202);
  const { statusUrl, purchaseId } = (await answer.json()) as Purchase;
  const { tokenId } = await poll(statusUrl, ({ step }) => step === "provision");
  // Every cloud was asked; then the time passes in which a machine could still be had and paid for.
  await expect.poll(() => world.runpod.server.met.get("sold_out") ?? 0, { timeout: WAIT_MS }).toBeGreaterThan(1);
  await world.chain.node.increaseTime({ seconds: 1_750 });
  await world.chain.node.mine({ blocks: 3 });
  // On a busy machine final history is past the authorization's time before anybody looks.
  const given = await poll(statusUrl, ({ status }) => status !== "authorized");
  expect(["releasing", "released"]).toContain(given.status);
  expect(given).toMatchObject({
    purchaseId,
    charged: false,
    reason: "no_machine_in_time",
    message: expect.stringMatching(/^Nothing was /),
    tokenId,
    transactions: { settlement: null, transfer: null, refund: null },
  });
  expect(await balanceOf(3)).toBe(before);
  expect(world.runpod.pods.size).toBe(0);
  const keeper = await world.chain.reader.readContract({
    address: CONTRACT_ADDRESS,
    abi: parseAbi(["function ownerOf(uint256 tokenId) view returns (address)"]),
    functionName: "ownerOf",
    args: [BigInt(tokenId)],
  });
  expect(keeper).toBe(world.chain.operator.address);
  world.runpod.server.clearFaults();
});

// What `npm start` plays: a customer's agent buys a machine, by the contract and over x402, and logs in.
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { buy, type Credentials, fetchCredentials, waitForStatus } from "./agent.ts";
import { fetchAgain } from "./http.ts";
import { color, type Narrator } from "./narrator.ts";
import { readQuote } from "./payer.ts";
import { payFetch } from "./payer-clients.ts";
import { runOverSsh } from "./ssh-client.ts";
import type { World } from "./world.ts";

const wait = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));

export type Phase = { tier: number | "x402"; name: string; ms: number };
/** `keyFolder` is where a reader's commands find the keys; there is none where nobody reads. */
export type Stage = { world: World; narrator: Narrator; keyFolder: string | undefined };

const DOING: Record<string, string> = {
  purchase: "approving USDC and buying",
  noticed: "waiting until the scan sees the purchase",
  machine: "waiting until the machine has booted and answers SSH",
  credentials: "asking for the credentials",
  ssh: "running a command over SSH",
  "quote, sign": "asking for a quote and signing it",
  token: "waiting for the token",
};

/** Runs parts of a job and keeps their times; an error names the part. */
function timed({ narrator }: Stage, tier: Phase["tier"]) {
  const phases: Phase[] = [];
  const phase = async <T>(name: string, work: () => Promise<T>): Promise<T> => {
    const from = performance.now();
    narrator.begin(DOING[name] ?? name);
    try {
      const result = await work();
      phases.push({ tier, name, ms: performance.now() - from });
      return result;
    } catch (cause) {
      throw new Error(`phase "${name}" of ${tier === "x402" ? tier : `tier ${tier}`}`, { cause });
    } finally {
      narrator.begin(undefined);
    }
  };
  return { phases, phase };
}

type Purchase = {
  status: string;
  step: string;
  message: string;
  tokenId: string;
  amount: string;
  statusUrl: string;
  transactions: { settlement: string | null };
};

/** The same over x402, with the stock client: one request, which the client pays for by itself. */
export async function paidJob(stage: Stage, tier: number): Promise<Phase[]> {
  const { chain, url } = stage.world;
  const { say } = stage.narrator;
  const [, agent] = chain.agents;
  if (agent === undefined) throw new Error("the world has no second agent");
  // The client's requests as it makes them: the order without a payment, then with one. Either may be sent again as it is; the
  // whole of it may not, since the client would sign another payment, which is another purchase.
  const send: typeof fetch = async (...request) => {
    const answer = await fetchAgain(...request);
    if (answer.status === 402) say(`quoted ${Number(readQuote(answer).accepts[0]?.amount) / 1e6} USDC by a 402`);
    return answer;
  };
  const { phases, phase } = timed(stage, "x402");
  say(`agent ${color("cyan", agent.address)} buys tier ${tier} for one day over x402, with @x402/fetch`);
  const purchase = await phase("quote, sign", async () => {
    const answer = await payFetch(agent, send)(`${url}/x402/purchase-compute`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ tier, durationDays: 1 }),
    });
    if (answer.status !== 202)
      throw new Error(`/x402/purchase-compute answered ${answer.status}: ${await answer.text()}`);
    return (await answer.json()) as Purchase;
  });
  say(`accepted, ${color("yellow", purchase.status)}: ${purchase.message}`);
  const { transactions } = await phase("machine", () =>
    followPurchase(stage, purchase.statusUrl, ({ status }) => status === "settled", purchase.message),
  );
  say(`the machine answers, ${purchase.amount} USDC taken in transaction ${transactions.settlement?.slice(0, 18)}…`);
  const { tokenId } = await phase("token", () =>
    followPurchase(stage, purchase.statusUrl, ({ step }) => step === "close" || step === "idle"),
  );
  say(`token ${color("green", tokenId)} is the agent's`);
  const credentials = await phase("credentials", () => fetchCredentials(url, agent, Number(tokenId)));
  const result = await phase("ssh", () => runOverSsh(credentials, "uname -a"));
  say(`${color("dim", "$ uname -a")}\n${result.output.trim().replace(/^/gm, "         ")}`);
  return phases;
}

async function followPurchase(
  { narrator }: Stage,
  statusUrl: string,
  isDone: (purchase: Purchase) => boolean,
  told = "",
): Promise<Purchase> {
  let last = told;
  for (;;) {
    const purchase = (await (await fetchAgain(statusUrl)).json()) as Purchase;
    if (isDone(purchase)) return purchase;
    if (["releasing", "released", "refunded"].includes(purchase.status)) throw new Error(purchase.message);
    if (purchase.message !== last) narrator.say(purchase.message);
    last = purchase.message;
    // The limit is 60 a minute and address.
    await wait(1_200);
  }
}

/** The main job as a customer's agent does it. Throws an error that names the phase. */
export async function mainJob(stage: Stage, tier: number): Promise<Phase[]> {
  const { chain, url } = stage.world;
  const { say } = stage.narrator;
  const [agent] = chain.agents;
  if (agent === undefined) throw new Error("the world has no agent");
  const { phases, phase } = timed(stage, tier);
  say(`agent ${color("cyan", agent.address)} buys tier ${tier} for one day`);
  const { tokenId, cost, txHash } = await phase("purchase", () => buy(chain, agent, tier, 1));
  say(
    `paid ${Number(cost) / 1e6} USDC, got token ${color("green", String(tokenId))} in transaction ${txHash.slice(0, 18)}…`,
  );
  await phase("noticed", () => firstAttempt(url, tokenId));
  say("the purchase was seen on chain and a machine is on order");
  await phase("machine", () =>
    waitForStatus(url, tokenId, ["running", "failed"], {
      onChange: (status, body) => {
        const tried = body.attempts.map((attempt) => `${attempt.provider} ${attempt.region}`).join(", ");
        say(`status ${color("yellow", status)}${tried === "" ? "" : ` (${tried})`}`);
      },
    }).then((body) => {
      if (body.status === "failed") throw new Error("no vendor had a machine");
    }),
  );
  const credentials = await phase("credentials", () => fetchCredentials(url, agent, tokenId));
  say(`credentials: ${color("cyan", pasteable(stage, credentials))}`);
  const command = credentials.type === "gcp" ? "uname -a" : "nvidia-smi";
  const result = await phase("ssh", () => runOverSsh(credentials, command));
  say(`${color("dim", `$ ${command}`)}\n${result.output.trim().replace(/^/gm, "         ")}`);
  return phases;
}

async function firstAttempt(url: string, tokenId: number): Promise<void> {
  await waitForStatus(url, tokenId, ["provisioning", "running"]);
  for (let tries = 0; tries < 120; tries++) {
    const body = (await (await fetchAgain(`${url}/status/${tokenId}`)).json()) as { attempts: unknown[] };
    if (body.attempts.length > 0) return;
    await wait(700);
  }
  throw new Error("no machine was ordered");
}

/** Saves the key where the printed command finds it: the world takes it away again. */
function pasteable({ keyFolder }: Stage, { tokenId, ssh, instructions }: Credentials): string {
  if (keyFolder === undefined) return instructions;
  writeFileSync(join(keyFolder, `clawcloud-${tokenId}.pem`), ssh.privateKey ?? "", { mode: 0o600 });
  // Between quotes: a temporary folder's name may have spaces.
  return instructions.replace(/-i (\S+)/, (_, file: string) => `-i '${join(keyFolder, file)}'`);
}

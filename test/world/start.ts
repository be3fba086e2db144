// `npm start`: the local world with the main job in front of the reader. Options: --once, --serve, --json.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs, styleText } from "node:util";
import type { LocalAccount } from "viem/accounts";
import { buy, type Credentials, fixedHeaders, waitForStatus } from "./agent.ts";
import { runOverSsh } from "./ssh-client.ts";
import type { World } from "./world.ts";

const USAGE = `Usage: npm start                     buy a VM in the local world and log in, then stay up
       npm start -- --once           a VM, a GPU, a VM over x402, times per phase, then exit
       npm start -- --serve --json   bring the world up, print one line of JSON, stay up`;

const began = performance.now();
const color = (format: Parameters<typeof styleText>[0], text: string) =>
  styleText(format, text, { stream: process.stdout, validateStream: true });
const seconds = (from: number) => `${((performance.now() - from) / 1_000).toFixed(1)} s`;
const say = (text: string) => console.log(`${color("dim", seconds(began).padStart(7))}  ${text}`);

const options = readOptions();
let world: World | undefined;
let stopping: Promise<void> | undefined;
let keyFolder: string | undefined;
for (const signal of ["SIGINT", "SIGTERM"] as const) {
  process.on(signal, () => {
    void shutDown().then(() => process.exit(0));
  });
}

// Whoever started us may be killed without a word: an orphan ends as well.
const parent = process.ppid;
setInterval(() => {
  if (process.ppid !== parent) void shutDown().then(() => process.exit(0));
}, 1_000).unref();

try {
  if (!options.json) say("starting the chain, the vendors and both Workers");
  const { startWorld } = await import("./world.ts");
  world = await startWorld();
  if (options.json) console.log(JSON.stringify(describe(world)));
  else say(`the API answers at ${color("cyan", world.url)}`);
  if (options.once) {
    const phases = [...(await mainJob(world, 0)), ...(await mainJob(world, 4)), ...(await paidJob(world))];
    printPhases(phases);
    await shutDown();
    process.exit(0);
  }
  if (!options.serve) {
    await mainJob(world, 0);
    await paidJob(world);
  }
  if (!options.json) printGuide(world);
} catch (error) {
  console.error(color("red", `failed: ${error instanceof Error ? error.message : String(error)}`));
  await shutDown();
  process.exit(1);
}

type Phase = { tier: number | "x402"; name: string; ms: number };

/** Runs parts of a job and keeps their times; an error names the part. */
function timed(tier: Phase["tier"]) {
  const phases: Phase[] = [];
  const phase = async <T>(name: string, work: () => Promise<T>): Promise<T> => {
    const from = performance.now();
    try {
      const result = await work();
      phases.push({ tier, name, ms: performance.now() - from });
      return result;
    } catch (cause) {
      const reason = cause instanceof Error ? cause.message : String(cause);
      throw new Error(`phase "${name}" of ${tier === "x402" ? tier : `tier ${tier}`}: ${reason}`, { cause });
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
async function paidJob({ chain, url }: World): Promise<Phase[]> {
  const [, agent] = chain.agents;
  if (agent === undefined) throw new Error("the world has no second agent");
  const [{ payFetch }, { readQuote }] = await Promise.all([import("./payer-clients.ts"), import("./payer.ts")]);
  const send: typeof fetch = async (...request) => {
    const answer = await fetch(...request);
    if (answer.status === 402) say(`quoted ${Number(readQuote(answer).accepts[0]?.amount) / 1e6} USDC by a 402`);
    return answer;
  };
  const { phases, phase } = timed("x402");
  say(`agent ${color("cyan", agent.address)} buys tier 0 for one day over x402, with @x402/fetch`);
  const purchase = await phase("quote, sign", async () => {
    const answer = await payFetch(agent, send)(`${url}/x402/purchase-compute`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ tier: 0, durationDays: 1 }),
    });
    if (answer.status !== 202) throw new Error(`/x402/purchase-compute answered ${answer.status}`);
    return (await answer.json()) as Purchase;
  });
  say(`accepted, ${color("yellow", purchase.status)}: ${purchase.message}`);
  const { transactions } = await phase("machine", () =>
    followPurchase(purchase.statusUrl, ({ status }) => status === "settled"),
  );
  say(`the machine answers, ${purchase.amount} USDC taken in transaction ${transactions.settlement?.slice(0, 18)}…`);
  const { tokenId } = await phase("token", () =>
    followPurchase(purchase.statusUrl, ({ step }) => step === "close" || step === "idle"),
  );
  say(`token ${color("green", tokenId)} is the agent's`);
  const credentials = await phase("credentials", () => fetchCredentials(url, agent, Number(tokenId)));
  const result = await phase("ssh", () => runOverSsh(credentials, "uname -a"));
  say(`${color("dim", "$ uname -a")}\n${result.output.trim().replace(/^/gm, "         ")}`);
  return phases;
}

async function followPurchase(statusUrl: string, isDone: (purchase: Purchase) => boolean): Promise<Purchase> {
  let told = "";
  for (;;) {
    const purchase = (await (await fetch(statusUrl)).json()) as Purchase;
    if (isDone(purchase)) return purchase;
    if (["releasing", "released", "refunded"].includes(purchase.status)) throw new Error(purchase.message);
    if (purchase.message !== told) say(purchase.message);
    told = purchase.message;
    // The limit is 60 a minute and address.
    await new Promise((resolve) => setTimeout(resolve, 1_200));
  }
}

/** The main job as a customer's agent does it. Throws an error that names the phase. */
async function mainJob({ chain, url }: World, tier: number): Promise<Phase[]> {
  const [agent] = chain.agents;
  if (agent === undefined) throw new Error("the world has no agent");
  const { phases, phase } = timed(tier);
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
  say(`credentials: ${color("cyan", options.once ? credentials.instructions : pasteable(credentials))}`);
  const command = credentials.type === "gcp" ? "uname -a" : "nvidia-smi";
  const result = await phase("ssh", () => runOverSsh(credentials, command));
  say(`${color("dim", `$ ${command}`)}\n${result.output.trim().replace(/^/gm, "         ")}`);
  return phases;
}

async function firstAttempt(url: string, tokenId: number): Promise<void> {
  await waitForStatus(url, tokenId, ["provisioning", "running"]);
  for (let tries = 0; tries < 60; tries++) {
    const body = (await (await fetch(`${url}/status/${tokenId}`)).json()) as { attempts: unknown[] };
    if (body.attempts.length > 0) return;
    await new Promise((resolve) => setTimeout(resolve, 700));
  }
  throw new Error("no machine was ordered");
}

/** Saves the key where the printed command finds it: the world takes it away again. */
function pasteable({ tokenId, ssh, instructions }: Credentials): string {
  keyFolder ??= mkdtempSync(join(tmpdir(), "clawcloud-keys-"));
  writeFileSync(join(keyFolder, `clawcloud-${tokenId}.pem`), ssh.privateKey ?? "", { mode: 0o600 });
  return instructions.replace("-i ", `-i ${keyFolder}/`);
}

async function fetchCredentials(url: string, agent: LocalAccount, tokenId: number): Promise<Credentials> {
  const ask = async () => fetch(`${url}/credentials/${tokenId}`, { headers: await fixedHeaders(agent, tokenId) });
  let response = await ask();
  // Just handed over: the scan is a second behind.
  for (let tries = 0; response.status === 503 && tries < 10; tries++) {
    await new Promise((resolve) => setTimeout(resolve, 1_000));
    response = await ask();
  }
  if (response.status !== 200) throw new Error(`/credentials answered ${response.status}: ${await response.text()}`);
  return (await response.json()) as Credentials;
}

function printPhases(phases: readonly Phase[]): void {
  console.log(`\n${color("bold", "tier  phase          seconds")}`);
  for (const { tier, name, ms } of phases) {
    console.log(`${String(tier).padEnd(6)}${name.padEnd(15)}${(ms / 1_000).toFixed(2).padStart(7)}`);
  }
}

/** Everything that a script needs. The keys hold play money of this world. */
function describe(up: World) {
  return {
    url: up.url,
    chainId: up.chain.chainId,
    rpcUrls: up.rpcUrls,
    rpcControlUrl: up.proxy.controlUrl,
    contract: up.contract,
    usdc: up.usdc,
    accounts: up.chain.agents.map((agent) => ({ address: agent.address, privateKey: keyOf(agent) })),
    deployer: { address: up.chain.deployer.address, privateKey: keyOf(up.chain.deployer) },
    adminKey: up.adminKey,
    pagesUrl: `${up.pager.url}/pages`,
    vultr: { apiUrl: up.vultr.apiUrl, controlUrl: up.vultr.controlUrl, sshPort: up.sshPort },
    runpod: { apiUrl: up.runpod.apiUrl, controlUrl: up.runpod.controlUrl },
    facilitator: { url: up.facilitator.url, controlUrl: up.facilitator.controlUrl },
  };
}

function keyOf(account: World["chain"]["deployer"]): string {
  const key = account.getHdKey().privateKey;
  return key === null ? "" : `0x${Buffer.from(key).toString("hex")}`;
}

function printGuide(up: World): void {
  const info = describe(up);
  const [account] = info.accounts;
  console.log(`
${color("bold", "The world is up.")} Ctrl-C ends it.
  API       ${info.url}    docs ${info.url}/docs    for agents ${info.url}/llms.txt
  chain     id ${info.chainId}, RPC ${info.rpcUrls.join(" ")}
  contract  ${info.contract}    USDC ${info.usdc}
  accounts  (play money)
${info.accounts.map(({ address, privateKey }) => `            ${address}  ${privateKey}`).join("\n")}

  operator  CLAWCLOUD_URL=${info.url} CLAWCLOUD_ADMIN_KEY=${info.adminKey} npm run admin -- vms list

  controls  Vultr ${info.vultr.controlUrl}    RunPod ${info.runpod.controlUrl}    RPC ${info.rpcControlUrl}
            facilitator ${info.facilitator.controlUrl}

${color("bold", "To try")}
  curl ${info.url}/tiers
  curl ${info.url}/vms/${account?.address}
  curl ${info.vultr.controlUrl}/machines
  ${color("dim", "# the next machine order at Vultr finds nothing in stock in ewr:")}
  curl -X POST ${info.vultr.controlUrl}/faults -d '{"call":"create","kind":"sold_out","region":"ewr","times":1}'
`);
}

function shutDown(): Promise<void> {
  if (keyFolder !== undefined) rmSync(keyFolder, { recursive: true, force: true });
  stopping ??= world?.stop() ?? Promise.resolve();
  return stopping;
}

function readOptions() {
  try {
    const { values } = parseArgs({
      options: {
        once: { type: "boolean" },
        serve: { type: "boolean" },
        json: { type: "boolean" },
        help: { type: "boolean" },
      },
    });
    if (values.help) {
      console.log(USAGE);
      process.exit(0);
    }
    return { once: values.once ?? false, serve: values.serve ?? false, json: values.json ?? false };
  } catch (error) {
    console.error(`${error instanceof Error ? error.message : error}\n${USAGE}`);
    process.exit(2);
  }
}

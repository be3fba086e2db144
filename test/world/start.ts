// `npm start`: the local world with the main job in front of the reader. Options: --once, --serve, --json, --tier.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs, styleText } from "node:util";
import type { LocalAccount } from "viem/accounts";
import { buy, type Credentials, fixedHeaders, freshHeaders, waitForStatus } from "./agent.ts";
import { fetchAgain, tellError } from "./http.ts";
import { runOverSsh } from "./ssh-client.ts";
import type { World } from "./world.ts";

const USAGE = `Usage: npm start                     buy a VM in the local world and log in, then stay up
       npm start -- --once           a VM, a GPU, a VM over x402, times per phase, then exit
       npm start -- --serve --json   bring the world up, print one line of JSON, stay up
       npm start -- --tier 2         buy that tier instead of tier 0`;

/** Three acts of one client stay below the 30 an hour that `/credentials` allows. */
const CREDENTIALS_TRIES = 9;
/** The rest after a try doubles up to the longest: two minutes in all. */
const FIRST_REST_MS = 1_500;
const LONGEST_REST_MS = 24_000;
/** How long a stop waits for a start that is under way. */
const START_PATIENCE_MS = 120_000;

const began = performance.now();
const color = (format: Parameters<typeof styleText>[0], text: string) =>
  styleText(format, text, { stream: process.stdout, validateStream: true });
const seconds = (from: number) => `${((performance.now() - from) / 1_000).toFixed(1)} s`;
const wait = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));
const say = (text: string) => console.log(`${color("dim", seconds(began).padStart(7))}  ${text}`);

const options = readOptions();
let starting: Promise<World> | undefined;
let stopping: Promise<void> | undefined;
let keyFolder: string | undefined;
for (const signal of ["SIGINT", "SIGTERM"] as const) {
  process.on(signal, () => {
    void shutDown().finally(() => process.exit(0));
  });
}

// Whoever started us may be killed without a word: an orphan ends as well.
const parent = process.ppid;
setInterval(() => {
  if (process.ppid !== parent) void shutDown().finally(() => process.exit(0));
}, 1_000).unref();

try {
  if (!options.json) say("starting the chain, the vendors and both Workers");
  const { startWorld } = await import("./world.ts");
  starting = startWorld();
  // Loading them takes seconds of one thread: not between two requests on one connection, but while processes come up.
  const loading = options.serve ? undefined : loadClients();
  const [up, clients] = await Promise.all([starting, loading]);
  if (stopping !== undefined) await stopped();
  if (options.json) console.log(JSON.stringify(describe(up)));
  else say(`the API answers at ${color("cyan", up.url)}`);
  if (clients !== undefined) await play(up, clients);
  if (options.once) {
    await shutDown();
    process.exit(0);
  }
  if (!options.json) printGuide(up);
} catch (error) {
  await end(error);
}

/** Acts one after the other. With --once the first that fails ends the run; else it is told, and the world stays up. */
async function play(up: World, clients: Clients): Promise<void> {
  const acts = [
    () => mainJob(up, options.tier),
    ...(options.once ? [() => mainJob(up, 4)] : []),
    () => paidJob(up, clients, options.tier),
  ];
  const phases: Phase[] = [];
  for (const act of acts) {
    try {
      phases.push(...(await act()));
    } catch (error) {
      if (options.once || stopping !== undefined) return end(error);
      tellFailure(error);
    }
  }
  if (options.once) printPhases(phases);
}

function tellFailure(error: unknown): void {
  console.error(color("red", `failed: ${tellError(error)}`));
}

/** Whatever fails while everything is being stopped is no failure: whoever stops it ends the process. */
async function end(error: unknown): Promise<void> {
  if (stopping !== undefined) return stopped();
  tellFailure(error);
  await shutDown();
  process.exit(1);
}

/** Never resolves: whoever stops everything ends the process. */
function stopped(): Promise<never> {
  return new Promise(() => undefined);
}

type Clients = Awaited<ReturnType<typeof loadClients>>;

async function loadClients() {
  const [{ payFetch }, { readQuote }] = await Promise.all([import("./payer-clients.ts"), import("./payer.ts")]);
  return { payFetch, readQuote };
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
      throw new Error(`phase "${name}" of ${tier === "x402" ? tier : `tier ${tier}`}`, { cause });
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
async function paidJob({ chain, url }: World, { payFetch, readQuote }: Clients, tier: number): Promise<Phase[]> {
  const [, agent] = chain.agents;
  if (agent === undefined) throw new Error("the world has no second agent");
  // The client's requests as it makes them: the order without a payment, then with one. Either may be sent again as it is; the
  // whole of it may not, since the client would sign another payment, which is another purchase.
  const send: typeof fetch = async (...request) => {
    const answer = await fetchAgain(...request);
    if (answer.status === 402) say(`quoted ${Number(readQuote(answer).accepts[0]?.amount) / 1e6} USDC by a 402`);
    return answer;
  };
  const { phases, phase } = timed("x402");
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
    const purchase = (await (await fetchAgain(statusUrl)).json()) as Purchase;
    if (isDone(purchase)) return purchase;
    if (["releasing", "released", "refunded"].includes(purchase.status)) throw new Error(purchase.message);
    if (purchase.message !== told) say(purchase.message);
    told = purchase.message;
    // The limit is 60 a minute and address.
    await wait(1_200);
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
  for (let tries = 0; tries < 120; tries++) {
    const body = (await (await fetchAgain(`${url}/status/${tokenId}`)).json()) as { attempts: unknown[] };
    if (body.attempts.length > 0) return;
    await wait(700);
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
  const path = `${url}/credentials/${tokenId}`;
  let failure: unknown;
  for (let tries = 0; tries < CREDENTIALS_TRIES; tries++) {
    // A key that went to a connection that broke comes again by the fresh form alone.
    const headers = tries === 0 ? fixedHeaders(agent, tokenId) : freshHeaders(url, agent, tokenId);
    try {
      const response = await fetch(path, { headers: await headers });
      if (response.status === 200) return (await response.json()) as Credentials;
      failure = new Error(`/credentials answered ${response.status}: ${await response.text()}`);
      // Just handed over: the scan is a second behind.
      if (response.status !== 503) throw failure;
    } catch (error) {
      if (error === failure) throw error;
      failure = error;
    }
    if (tries + 1 < CREDENTIALS_TRIES) await wait(Math.min(LONGEST_REST_MS, FIRST_REST_MS * 2 ** tries));
  }
  throw failure;
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
  stopping ??= stopWorld();
  return stopping;
}

/** Also where the world is still coming up: what it has started by then would stay behind. */
async function stopWorld(): Promise<void> {
  // A start that failed is told elsewhere.
  const ended = starting?.then(({ stop }) => stop).catch(() => undefined);
  const stop = await Promise.race([ended, wait(START_PATIENCE_MS)]);
  await stop?.();
}

function readOptions() {
  try {
    const { values } = parseArgs({
      options: {
        once: { type: "boolean", default: false },
        serve: { type: "boolean", default: false },
        json: { type: "boolean", default: false },
        tier: { type: "string", default: "0" },
        help: { type: "boolean" },
      },
    });
    if (values.help) {
      console.log(USAGE);
      process.exit(0);
    }
    if (!/^\d{1,3}$/.test(values.tier)) throw new Error(`--tier takes a number, not "${values.tier}"`);
    return { ...values, tier: Number(values.tier) };
  } catch (error) {
    console.error(`${error instanceof Error ? error.message : error}\n${USAGE}`);
    process.exit(2);
  }
}

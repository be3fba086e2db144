// `npm run dev` in a copy of the repository whose path has spaces and more than ASCII: kept worlds, reloads, what is taken.
import { spawnSync } from "node:child_process";
import { once } from "node:events";
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { createPublicClient, createWalletClient, defineChain, http } from "viem";
import type { LocalAccount } from "viem/accounts";
import { afterAll, beforeAll, expect, type TestContext, test } from "vitest";
import { listFiles } from "../changed.ts";
import { isAlive, processesOf, startChild, untilGone } from "../e2e/child.ts";
import { developmentAccount } from "../world/accounts.ts";
import { buy, fetchCredentials, waitForStatus } from "../world/agent.ts";
import { runOverSsh } from "../world/ssh-client.ts";

const ROOT = fileURLToPath(new URL("../../", import.meta.url).href);
const PORT = 19_400;
const URL_OF_API = `http://127.0.0.1:${PORT}`;
const rpc = `http://127.0.0.1:${PORT + 1}`;
const parent = mkdtempSync(join(tmpdir(), "claw cloud ü 漢字 "));
const copy = join(parent, "the repository");
const agent = developmentAccount(0);

beforeAll(() => {
  for (const file of listFiles()) cpSync(join(ROOT, file), join(copy, file), { recursive: true });
  symlinkSync(join(ROOT, "node_modules"), join(copy, "node_modules"));
});
afterAll(() => rmSync(parent, { recursive: true, force: true }));

const dev = (context: TestContext, ...args: string[]) =>
  startChild(context, "npm", ["run", "dev", "--", "--port", String(PORT), ...args], { cwd: copy, detached: true });

async function interrupt(run: ReturnType<typeof dev>): Promise<void> {
  const family = processesOf(run.pid);
  run.interruptAll();
  await run.ended;
  await untilGone(family);
}

function clients() {
  const chain = defineChain({
    id: 8453,
    name: "Base (local)",
    nativeCurrency: { name: "Ether", symbol: "ETH", decimals: 18 },
    rpcUrls: { default: { http: [rpc] } },
  });
  const transport = http(rpc);
  const settings = { chain, transport, pollingInterval: 100, cacheTime: 0 };
  return {
    reader: createPublicClient(settings),
    wallet: (account: LocalAccount) => createWalletClient({ account, ...settings }),
  };
}

const get = async (path: string) => (await fetch(URL_OF_API + path)).text();

function commandOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8");
  } catch {
    return "";
  }
}

/** As editors, sed and git write a file: another one takes its name. */
function replace(file: string, text: string): void {
  writeFileSync(join(parent, "new"), text);
  renameSync(join(parent, "new"), file);
}

test("a taken port is named with another one to choose, and a lock whose process is dead holds nobody up", async (context) => {
  mkdirSync(join(copy, ".wrangler"), { recursive: true });
  writeFileSync(join(copy, ".wrangler/dev.lock"), String(spawnSync("true").pid));
  const other = createServer().listen(PORT, "127.0.0.1");
  await once(other, "listening");
  const taken = dev(context);
  expect(await taken.ended).toBe(1);
  expect(taken.output()).toMatch(/^failed: port 19400, of the API, is taken: .* by --port 20400$/m);
  await new Promise((resolve) => other.close(resolve));
});

test("a world outlives reloads and its process, and --reset begins another", async (context) => {
  const first = dev(context);
  await first.says(/watching src/);
  const second = dev(context, "--reset", "--port", String(PORT + 1_000));
  expect(await second.ended).toBe(2);
  expect(second.output()).toMatch(/^npm run dev runs in this checkout already: end process \d+ first, /m);
  expect(second.output()).not.toContain("is taken");

  const bought = [await buy(clients(), agent, 0, 1), await buy(clients(), agent, 4, 1)];
  for (const [index, { tokenId }] of bought.entries()) {
    await waitForStatus(URL_OF_API, tokenId, ["running"]);
    await runOverSsh(await fetchCredentials(URL_OF_API, agent, tokenId), `echo machine ${index} > note`);
  }

  const text = join(copy, "src/edge/routes/llms.txt");
  writeFileSync(text, `${readFileSync(text, "utf8")}\nA line of another version.\n`);
  await first.says(/reloaded in/);
  expect(await get("/llms.txt")).toContain("A line of another version.");
  const source = join(copy, "src/in-time.ts");
  const sound = readFileSync(source, "utf8");
  // Each build of wrangler writes to src/provisioner/.wrangler, which was a change that led to the next build.
  replace(source, `${sound}\nexport const broken = ;\n`);
  await first.says(/^not reloaded: Build failed with 1 error:\n +Unexpected ";"\n +src\/in-time\.ts:\d+:\d+:$/m);
  // A file that another one replaced was not seen a second time.
  replace(source, `${sound}\nexport const broken = );\n`);
  await first.says(/Unexpected "\)"\n/);
  expect(await get("/llms.txt")).toContain("A line of another version.");
  replace(source, sound);
  await first.says(/the Workers run these sources already/);
  replace(text, `${readFileSync(text, "utf8")}\nA line of a third version.\n`);
  await first.says(/reloaded in.*reloaded in/s);
  expect(await get("/llms.txt")).toContain("A line of a third version.");
  expect(first.output().match(/not reloaded/g)).toHaveLength(2);
  // biome-ignore lint/suspicious/noControlCharactersInRegex: colours begin with one.
  expect(first.output()).not.toMatch(/\u001b|Logs were written/);
  await interrupt(first);

  const next = dev(context);
  await next.says(/watching src/);
  for (const [index, { tokenId }] of bought.entries()) {
    const credentials = await fetchCredentials(URL_OF_API, agent, tokenId);
    expect(await runOverSsh(credentials, "cat note")).toEqual({ output: `machine ${index}\n`, code: 0 });
  }
  const third = await buy(clients(), agent, 0, 1);
  expect(third.tokenId).toBe(2);
  await waitForStatus(URL_OF_API, third.tokenId, ["running"]);
  expect(JSON.parse(await get(`/vms/${agent.address}`))).toMatchObject({ count: 3 });
  // Miniflare ended the process at once: wrangler's went on, and the chain was not saved.
  const chainFile = join(copy, ".wrangler/dev/chain.json");
  rmSync(chainFile, { force: true });
  replace(text, `${readFileSync(text, "utf8")}\nA line of a fourth version.\n`);
  const builders = () => processesOf(next.pid).filter((id) => commandOf(id).includes("wrangler"));
  await expect.poll(builders, { timeout: 60_000 }).not.toEqual([]);
  const family = processesOf(next.pid);
  const building = builders();
  next.kill("SIGTERM");
  await next.ended;
  expect(building.filter(isAlive)).toEqual([]);
  expect(existsSync(chainFile)).toBe(true);
  await untilGone(family);

  const another = dev(context, "--reset");
  await another.says(/watching src/);
  expect(JSON.parse(await get(`/vms/${agent.address}`))).toMatchObject({ count: 0 });
  await interrupt(another);
});

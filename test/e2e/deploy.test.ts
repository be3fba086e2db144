// The way to an account, as far as it goes without one: keys, the dry run, and the README's page held against wrangler.
import { execFile } from "node:child_process";
import { cp, mkdtemp, readFile, rm, stat, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { promisify } from "node:util";
import { privateKeyToAddress } from "viem/accounts";
import { afterAll, beforeAll, expect, test } from "vitest";
import { BUDGETS_KIB } from "../bench/budgets.ts";
import { wrangler } from "../world/bare-workers.ts";

const run = promisify(execFile);
const node = (args: string[], cwd = process.cwd()) =>
  run(process.execPath, args, { cwd, env: { ...process.env, WRANGLER_SEND_METRICS: "false" } }).then(
    ({ stdout, stderr }) => ({ code: 0, stdout, stderr }),
    (error: { code: number; stdout: string; stderr: string }) => error,
  );

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "clawcloud-test-"));
});
afterAll(() => rm(folder, { recursive: true }));

test("npm run keys writes secrets that only their owner can read, tells none, and overwrites nothing", async () => {
  const out = join(folder, "secrets");
  const { code, stdout } = await node(["src/admin/keys.ts", "--out", out]);
  expect(code).toBe(0);
  const read = async (name: string) => JSON.parse(await readFile(join(out, name), "utf8")) as Record<string, string>;
  const [edge, provisioner] = [await read("edge.json"), await read("provisioner.json")];
  for (const name of ["edge.json", "provisioner.json"]) expect((await stat(join(out, name))).mode & 0o777).toBe(0o600);
  expect(stdout).toContain(privateKeyToAddress(`0x${provisioner["OPERATOR_PRIVATE_KEY"]}`));
  for (const secret of [edge["DATA_PRIVATE_KEY"], edge["ADMIN_API_KEY"], provisioner["OPERATOR_PRIVATE_KEY"]]) {
    expect(secret).toMatch(/^(claw_)?[0-9a-f]{64}/);
    expect(stdout).not.toContain(secret);
  }
  expect(Object.keys(edge).filter((name) => name in provisioner)).toEqual(["RPC_URLS"]);

  const again = await node(["src/admin/keys.ts", "--out", out]);
  expect([again.code, again.stderr]).toEqual([1, expect.stringContaining("exists: a new data key would not open")]);
  expect(await read("edge.json")).toEqual(edge);
});

test("a dry run builds both Workers and names what a deployment would refuse; a deployment refuses it", async () => {
  // In a copy without settings: in an operator's own checkout the second command would deploy.
  const copy = join(folder, "checkout");
  for (const name of ["src", "durable-objects", "package.json", "wrangler.toml"]) {
    await cp(name, join(copy, name), { recursive: true });
  }
  await symlink(resolve("node_modules"), join(copy, "node_modules"));
  for (const name of ["wrangler.toml", "src/provisioner/wrangler.toml"]) {
    const text = await readFile(name, "utf8");
    const bare = text
      .replace(/^START_BLOCK.*$/m, "")
      .replace(/^database_id.*$/m, 'database_id = "00000000-0000-0000-0000-000000000000"');
    await writeFile(join(copy, name), bare);
  }
  const dry = await node(["src/admin/deploy.ts", "--dry-run"], copy);
  expect(dry.code).toBe(0);
  const sizes = [...dry.stdout.matchAll(/Total Upload: [\d.]+ KiB \/ gzip: ([\d.]+) KiB/g)].map(([, gzip]) =>
    Number(gzip),
  );
  expect(sizes).toHaveLength(2);
  for (const [i, worker] of ["edge", "provisioner"].entries()) {
    expect(sizes[i], `${worker}, gzipped`).toBeLessThan(BUDGETS_KIB[worker] ?? 0);
  }
  for (const problem of ["wrangler.toml: database_id is not set", "edge: START_BLOCK: is not set"]) {
    expect(dry.stderr).toContain(problem);
  }
  const real = await node(["src/admin/deploy.ts"], copy);
  expect(real.code).toBe(1);
  expect(real.stderr).toContain("Nothing was deployed.");
  expect(real.stdout).not.toContain("Upload");
});

const readme = await readFile("README.md", "utf8");
const shellLines = [...readme.matchAll(/^```\n(.*?)^```$/gms)].flatMap(([, block = ""]) => block.split("\n"));
const commands = [...new Set(shellLines.filter((line) => line.startsWith("npx wrangler ")))];

test.each(commands)("README: wrangler's own help knows `%s`", async (command) => {
  const words = command.replace("npx wrangler ", "").split(/\s+/);
  const flags = words.filter((word) => word.startsWith("-")).map((flag) => flag.split("=")[0]);
  const firstFlag = words.findIndex((word) => word.startsWith("-"));
  const plain = firstFlag === -1 ? words : words.slice(0, firstFlag);
  // Subcommands come first and arguments after them: the longest run of words that has a help page of its own.
  let help = "";
  let depth = plain.length;
  for (; depth > 0 && !help.startsWith(`wrangler ${plain.slice(0, depth).join(" ")}`); depth--) {
    help = await wrangler([...plain.slice(0, depth), "--help"]).catch(() => "");
    if (help.startsWith(`wrangler ${plain.slice(0, depth).join(" ")}`)) break;
  }
  expect(depth).toBeGreaterThan(0);
  const usage = help.split("\n")[0] ?? "";
  const given = plain.length - depth;
  expect(given, usage).toBeGreaterThanOrEqual(usage.match(/<[\w-]+>/g)?.length ?? 0);
  expect(given, usage).toBeLessThanOrEqual(usage.match(/[<[][\w-]+[>\]]/g)?.length ?? 0);
  for (const flag of flags) expect(help, `${flag} of ${usage}`).toMatch(new RegExp(`(^|[\\s,])${flag}\\b`, "m"));
});

test("README: every npm script that it names exists, and every script is named", async () => {
  const { scripts } = JSON.parse(await readFile("package.json", "utf8")) as { scripts: Record<string, string> };
  const named = new Set([...readme.matchAll(/npm run ([a-z]+)/g)].map(([, name = ""]) => name));
  expect([...named].filter((name) => scripts[name] === undefined)).toEqual([]);
  const builtIn = ["start", "test"];
  expect(Object.keys(scripts).filter((name) => !named.has(name) && !builtIn.includes(name))).toEqual([]);
});

// The way to an account, as far as it goes without one: keys, the dry run, and the operators' guide held against wrangler.
import { execFile } from "node:child_process";
import { cp, mkdtemp, readFile, rm, stat, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { promisify } from "node:util";
import { privateKeyToAddress } from "viem/accounts";
import { afterAll, beforeAll, expect, test } from "vitest";
import { experimental_getWranglerCommands } from "wrangler";
import { BUDGETS_KIB } from "../bench/budgets.ts";

const run = promisify(execFile);
// What is compiled of a copy is of no use to anybody later.
const env = { ...process.env, WRANGLER_SEND_METRICS: "false", NODE_DISABLE_COMPILE_CACHE: "1" };
const node = (args: string[], cwd = process.cwd()) =>
  run(process.execPath, args, { cwd, env }).then(
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

const guide = await readFile("src/admin/README.md", "utf8");
const shellLines = [...guide.matchAll(/^```sh\n(.*?)^```$/gms)].flatMap(([, block = ""]) => block.split("\n"));
const commands = [...new Set(shellLines.filter((line) => line.startsWith("npx wrangler ")))];

const { registry, globalFlags } = experimental_getWranglerCommands();
type Flag = { alias?: string | readonly string[]; hidden?: boolean };

/** What wrangler's own definitions don't know of a command line that begins with "npx wrangler"; empty where it would run. */
function unknownIn(command: string): string[] {
  const words = command.replace("npx wrangler ", "").split(/\s+/);
  const flags = words.filter((word) => word.startsWith("-")).map((flag) => flag.replace(/=.*/, ""));
  const firstFlag = words.findIndex((word) => word.startsWith("-"));
  const plain = firstFlag === -1 ? words : words.slice(0, firstFlag);
  // Subcommands come first and arguments after them.
  let node = registry;
  let depth = 0;
  for (; depth < plain.length; depth++) {
    const next = node.subtree.get(plain[depth] ?? "");
    if (next === undefined) break;
    node = next;
  }
  if (node.definition?.type !== "command") return [`there is no "${plain.slice(0, depth + 1).join(" ")}"`];
  const { args = {}, positionalArgs = [] } = node.definition;
  const required = positionalArgs.filter((name) => args[name]?.["demandOption"]);
  const given = plain.length - depth;
  const options = Object.entries({ ...globalFlags, ...args } as Record<string, Flag>).filter(
    ([name, { hidden }]) => !hidden && !positionalArgs.includes(name),
  );
  const known = options.flatMap(([name, { alias = [] }]) => [name, ...[alias].flat()]).map(dashed);
  return [
    ...(given < required.length ? [`it wants ${required.join(", ")}`] : []),
    ...(given > positionalArgs.length ? [`it takes no "${plain.at(-1)}"`] : []),
    ...flags.filter((flag) => !known.includes(flag)).map((flag) => `it has no ${flag}`),
  ];
}
const dashed = (name: string) => (name.length === 1 ? `-${name}` : `--${name}`);

test("the operators' guide names commands of wrangler", () => {
  expect(commands.length).toBeGreaterThan(10);
});

test.each(commands)("the operators' guide: wrangler knows `%s`", (command) => {
  expect(unknownIn(command)).toEqual([]);
});

test.each([
  ["npx wrangler queue create clawcloud-jobs", 'there is no "queue"'],
  ["npx wrangler queues make clawcloud-jobs", 'there is no "queues make"'],
  ["npx wrangler d1 migrations", 'there is no "d1 migrations"'],
  ["npx wrangler queues create", "it wants name"],
  ["npx wrangler queues create clawcloud-jobs clawcloud-jobs-dead", 'it takes no "clawcloud-jobs-dead"'],
  ["npx wrangler login clawcloud", 'it takes no "clawcloud"'],
  ["npx wrangler d1 export clawcloud --remote --file=backup.sql", "it has no --file"],
  ["npx wrangler d1 time-travel restore clawcloud --time=2026-02-03T12:00:00Z", "it has no --time"],
  ["npx wrangler tail -x src/provisioner/wrangler.toml", "it has no -x"],
  ["npx wrangler secret put RPC_URLS --key RPC_URLS", "it has no --key"],
])("of `%s` the check says: %s", (command, problem) => {
  expect(unknownIn(command)).toEqual([problem]);
});

test("every npm script that the documents name exists, and every script is named", async () => {
  const { scripts } = JSON.parse(await readFile("package.json", "utf8")) as { scripts: Record<string, string> };
  const documents = ["README.md", "src/README.md", "src/admin/README.md", "test/README.md", ".github/CONTRIBUTING.md"];
  const text = (await Promise.all(documents.map((file) => readFile(file, "utf8")))).join("\n");
  const named = new Set([...text.matchAll(/npm run (?:--silent )?([a-z:]+)/g)].map(([, name = ""]) => name));
  expect([...named].filter((name) => scripts[name] === undefined)).toEqual([]);
  const builtIn = ["start", "test"];
  expect(Object.keys(scripts).filter((name) => !named.has(name) && !builtIn.includes(name))).toEqual([]);
});

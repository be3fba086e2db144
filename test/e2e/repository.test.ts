// What the repository promises about itself: who holds which secret, artifacts that match their sources.
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { unstable_readConfig } from "wrangler";
import { EDGE_VARIABLES } from "../../src/edge/config.ts";
import { PROVISIONER_VARIABLES } from "../../src/provisioner/config.ts";
import { drawings, partsOf } from "../lives.ts";
import { artifacts } from "../world/chain.ts";
import { compileContracts } from "../world/contracts/compile.ts";

type Binding = { class_name: string; script_name?: string };
const isSecret = (name: string) => /KEY|SECRET|TOKEN|PASSWORD/.test(name) && !/PUBLIC_KEY|ALGORITHM|GRACE/.test(name);

test("no secret is in both Workers (hard case 3)", () => {
  const edge = EDGE_VARIABLES.filter(isSecret);
  const provisioner = PROVISIONER_VARIABLES.filter(isSecret);
  expect(edge).toEqual([
    "DATA_PRIVATE_KEY",
    "RETIRED_DATA_KEYS",
    "ADMIN_API_KEY",
    "ALERT_WEBHOOK_SECRET",
    "CDP_API_KEY_ID",
    "CDP_API_KEY_SECRET",
  ]);
  expect(provisioner).toEqual(["OPERATOR_PRIVATE_KEY", "VULTR_API_KEY", "RUNPOD_API_KEY"]);
  expect(edge.filter((name) => provisioner.includes(name))).toEqual([]);
});

test("the edge binds no object of the provisioner's, and the provisioner has no public address (hard case 3)", () => {
  const edge = unstable_readConfig({ config: "wrangler.toml" });
  const provisioner = unstable_readConfig({ config: "src/provisioner/wrangler.toml" });
  const classes = (config: typeof edge) =>
    config.durable_objects.bindings.map((binding: Binding) => binding.class_name);
  expect(classes(edge)).toEqual(["IpGuard", "LogBook"]);
  expect(edge.durable_objects.bindings.every((binding: Binding) => binding.script_name === undefined)).toBe(true);
  // Of the edge's objects the provisioner reaches the one that takes its logs.
  expect(
    provisioner.durable_objects.bindings.map(({ class_name, script_name }: Binding) => [class_name, script_name]),
  ).toEqual([
    ["VendorGate", undefined],
    ["OperatorWallet", undefined],
    ["LogBook", "clawcloud-edge"],
  ]);
  expect(provisioner).toMatchObject({ workers_dev: false, preview_urls: false });
  expect(provisioner.routes ?? []).toEqual([]);
  expect(edge.services ?? []).toEqual([]);
  for (const config of [edge, provisioner]) {
    expect(Object.keys(config.vars).filter(isSecret)).toEqual([]);
    expect(config.d1_databases[0]?.database_name).toBe("clawcloud");
  }
});

test("every page that calls a person is in the README's chapter on failures", () => {
  const sources = execFileSync("git", ["ls-files", "src/*.ts", "durable-objects/*.ts"], { encoding: "utf8" }).split(
    "\n",
  );
  const text = sources
    .filter((file) => file !== "")
    .map((file) => readFileSync(file, "utf8"))
    .join("\n");
  const said = /log\(\s*(?:[^,;]*"page"(?: : "warn")?|level\w*(?:\([^()]*\))?),\s*["`]([a-z_]+)(?=["`$])/g;
  const pages = [...text.matchAll(said)].map(([, event]) => event ?? "");
  expect(pages.length).toBeGreaterThan(15);
  const [, chapter = ""] = /## When something fails\n([\s\S]*?)\n## /.exec(readFileSync("README.md", "utf8")) ?? [];
  expect(pages.filter((event) => !chapter.includes(`\`${event}`))).toEqual([]);
});

test("the contracts' artifact is what their sources compile to", () => {
  expect(compileContracts()).toEqual(artifacts);
});

test("every variable of both Workers is in the README's tables", () => {
  const readme = readFileSync("README.md", "utf8");
  const missing = [...EDGE_VARIABLES, ...PROVISIONER_VARIABLES].filter((name) => !readme.includes(`\`${name}\``));
  expect(missing).toEqual([]);
});

test("every test that the table of assumptions names exists", () => {
  const named = [...readFileSync("test/README.md", "utf8").matchAll(/`(test\/[\w/-]+\.test\.ts)`/g)].map(
    ([, file = ""]) => file,
  );
  expect(named.length).toBeGreaterThan(20);
  expect(named.filter((file) => !existsSync(file))).toEqual([]);
});

test("every file that CONTRIBUTING names is there: a newcomer's guesses", () => {
  const guide = readFileSync(".github/CONTRIBUTING.md", "utf8");
  const named = [...guide.matchAll(/`((?:src|durable-objects|test)\/[\w/.-]+)`/g)].map(([, file = ""]) => file);
  expect(new Set(named).size).toBeGreaterThan(20);
  expect(named.filter((file) => !existsSync(file))).toEqual([]);
});

test("the drawings of the lives are what the tables say: npm run lives draws them", () => {
  const [, drawn] = partsOf(readFileSync("src/README.md", "utf8"));
  expect(drawn).toBe(drawings());
});

// What the repository promises about itself: who holds which secret, artifacts that match their sources.
import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { expect, test } from "vitest";
import { unstable_readConfig } from "wrangler";
import { EDGE_VARIABLES } from "../../src/edge/config.ts";
import { PROVISIONER_VARIABLES } from "../../src/provisioner/config.ts";
import { listFiles } from "../changed.ts";
import { drawings, partsOf } from "../lives.ts";
import { artifacts } from "../world/chain.ts";
import { compileContracts } from "../world/contracts/compile.ts";

type Binding = { class_name: string; script_name?: string };
const read = (file: string) => readFileSync(file, "utf8");
const documents = listFiles().filter((file) => file.endsWith(".md"));
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

test("every page that calls a person is in the operators' table of pages", () => {
  const text = listFiles("src/*.ts", "durable-objects/*.ts").map(read).join("\n");
  const said = /log\(\s*(?:[^,;]*"page"(?: : "warn")?|level\w*(?:\([^()]*\))?),\s*["`]([a-z_]+)(?=["`$])/g;
  const pages = [...text.matchAll(said)].map(([, event]) => event ?? "");
  expect(pages.length).toBeGreaterThan(15);
  const chapter = chapterOf("src/admin/README.md", "When something fails");
  expect(pages.filter((event) => !chapter.includes(`\`${event}`))).toEqual([]);
});

test("the contracts' artifact is what their sources compile to", () => {
  expect(compileContracts()).toEqual(artifacts);
});

test("every variable of both Workers is in the operators' tables, once", () => {
  const rows = chapterOf("src/admin/README.md", "Environment").split("\n");
  const named = rows.flatMap((row) =>
    [...(row.split(" | ")[0] ?? "").matchAll(/`([A-Z0-9_]+)`/g)].map(([, name]) => name),
  );
  expect(named.toSorted()).toEqual([...new Set([...EDGE_VARIABLES, ...PROVISIONER_VARIABLES])].toSorted());
});

test("the README can be read in one go, and has the commands that .ci/run and the workflow run", () => {
  expect(read("README.md").split("\n").length - 1).toBeLessThanOrEqual(180);
  const command = read(".ci/run").trim().split("\n").at(-1) ?? "";
  expect(read("README.md")).toContain(`\`\`\`\n${command}\n\`\`\`\n`);
  const steps = [...read(".github/workflows/test.yml").matchAll(/- run: (npm .*)/g)].map(([, step]) => step);
  expect(steps.slice(0, 2).join(" && ")).toBe(command);
});

test("every package is in the README's list of dependencies, and nothing else", () => {
  const { dependencies, devDependencies, optionalDependencies } = JSON.parse(read("package.json")) as Record<
    "dependencies" | "devDependencies" | "optionalDependencies",
    Record<string, string>
  >;
  const packages = Object.keys({ ...dependencies, ...devDependencies, ...optionalDependencies });
  const rows = chapterOf("README.md", "Dependencies").matchAll(/^\| ([^|]+) \|/gm);
  const named = [...rows]
    .flatMap(([, cell = ""]) => cell.split(", "))
    .filter((name) => !/^(package|---|@types\/…)$/.test(name));
  expect(named.toSorted()).toEqual(packages.filter((name) => !name.startsWith("@types/")).toSorted());
});

test("every file that a document names is there: a newcomer's guesses", () => {
  const missing: string[] = [];
  const counts = new Map<string, number>();
  for (const document of documents) {
    const named = [...read(document).matchAll(/`((?:src|durable-objects|test|migrations|\.github)\/[\w/.-]*)`/g)];
    counts.set(document, named.length);
    missing.push(...named.flatMap(([, file = ""]) => (existsSync(file) ? [] : [`${document}: ${file}`])));
  }
  expect(missing).toEqual([]);
  for (const document of [".github/CONTRIBUTING.md", "test/README.md", "src/README.md"]) {
    expect(counts.get(document), document).toBeGreaterThan(20);
  }
});

test("every link of a document leads to a file, and to a heading of it", () => {
  const broken: string[] = [];
  for (const document of documents) {
    for (const [, path = "", anchor] of read(document).matchAll(/\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)/g)) {
      const target = path === "" ? document : join(dirname(document), path);
      const isThere = existsSync(target) && (anchor === undefined || headingsOf(target).map(slugOf).includes(anchor));
      if (!isThere) broken.push(`${document}: ${path}#${anchor ?? ""}`);
    }
  }
  expect(broken).toEqual([]);
});

test("what a comment or a sentence cites of a document is in the repository", () => {
  const missing: string[] = [];
  for (const [file, text] of sources()) {
    for (const [, document = "", heading = ""] of text.matchAll(/((?:[\w-]+\/)+README\.md|README\.md), "([^"]+)"/g)) {
      if (!existsSync(document) || !headingsOf(document).includes(heading))
        missing.push(`${file}: ${document}, ${heading}`);
    }
    if (
      /\b(?:ARCHITECTURE|API|HARD-CASES|PLATFORM|X402|HOUSE|STYLE)\.md\b|\bthe (?:public )?reference(?:'s|,|;)/.test(
        text,
      )
    ) {
      missing.push(`${file}: a document that is not here`);
    }
  }
  expect(missing).toEqual([]);
});

test("every decision that is cited exists, is cited by its number, and has a test that cites it", () => {
  const decisions = new Map(
    [...read("src/README.md").matchAll(/^\| (\d+) \| .*\| `(\S+)` \|$/gm)].map(([, number, file = ""]) => [
      Number(number),
      file,
    ]),
  );
  expect([...decisions.keys()]).toEqual(Array.from({ length: decisions.size }, (_, i) => i + 1));
  const unknown: string[] = [];
  for (const [file, text] of [...sources(), ...documents.map((one) => [one, read(one)] as const)]) {
    unknown.push(...citedIn(text).flatMap((number) => (decisions.has(number) ? [] : [`${file}: ${number}`])));
    // One that a search for "hard case 9" does not find.
    unknown.push(
      ...[...text.matchAll(/^\s*(?:\/\/|\*).*(?:\s\((?:\d\d?)\)|\bhard(?: cases?)?$)/gim)].map(
        ([line]) => `${file}: ${line}`,
      ),
    );
  }
  expect(unknown).toEqual([]);
  const unheld = [...decisions].filter(([number, file]) => !existsSync(file) || !citedIn(read(file)).includes(number));
  expect(unheld).toEqual([]);
});

test("the drawings of the lives are what the tables say: npm run lives draws them", () => {
  const [, drawn] = partsOf(read("src/README.md"));
  expect(drawn).toBe(drawings());
});

test("the glossary is short", () => {
  const terms = [...chapterOf("src/README.md", "Glossary").matchAll(/^\| (?!term|---)/gm)];
  expect(terms.length).toBeGreaterThan(10);
  expect(terms.length).toBeLessThanOrEqual(25);
});

/** Comments, names of tests and sentences: everything that is no document. */
const sources = () =>
  listFiles("src", "durable-objects", "test", "migrations/*.sql", "*.ts", "*.toml", ".ci", ".github/workflows")
    .filter((file) => /\.(?:ts|sql|txt|toml|sol|sh|yml)$|^\.ci\//.test(file) && file !== "test/e2e/repository.test.ts")
    .map((file) => [file, read(file)] as const);

const citedIn = (text: string): number[] =>
  [...text.matchAll(/\bhard cases? (\d+(?:(?:,| and|, and) \d+)*)/gi)].flatMap(([, numbers = ""]) =>
    [...numbers.matchAll(/\d+/g)].map(Number),
  );

const headingsOf = (document: string): string[] =>
  [
    ...read(document)
      .replaceAll(/^```.*?^```$/gms, "")
      .matchAll(/^#+ (.+)$/gm),
  ].map(([, heading = ""]) => heading);

/** As GitHub makes an anchor of a heading. */
const slugOf = (heading: string): string =>
  heading
    .toLowerCase()
    .replaceAll(/[^\p{L}\p{N} _-]/gu, "")
    .replaceAll(" ", "-");

/** From a heading to the next one of its kind or above. */
function chapterOf(document: string, heading: string): string {
  const [, chapter] = read(document).split(`\n## ${heading}\n`);
  if (chapter === undefined) throw new Error(`${document} has no "${heading}"`);
  return chapter.split("\n## ")[0] ?? "";
}

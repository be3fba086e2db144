// What wrangler uploads, held against workerd's own check: Miniflare mends settings that an upload is refused for (hard case 47).
import { spawn } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { uploadFormOf } from "../world/bare-workers.ts";
import { freePort } from "../world/ports.ts";

type Metadata = { main_module: string; compatibility_date: string; compatibility_flags: string[] };

// The program itself: a kill of the package's command would leave it running.
const { default: workerd } = createRequire(import.meta.url)("workerd") as { default: string };
let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "clawcloud-upload-"));
});
afterAll(() => rm(folder, { recursive: true }));

const metadataOf = (form: FormData) => JSON.parse(String(form.get("metadata"))) as Metadata;

/** Writes the uploaded modules and resolves with workerd's configuration of them. */
async function configure(form: FormData, { main_module, compatibility_date, compatibility_flags }: Metadata) {
  const files = [...form.values()].filter((value) => typeof value !== "string");
  const own = files.filter(({ type }) => type !== "application/source-map");
  const ordered = [
    ...own.filter(({ name }) => name === main_module),
    ...own.filter(({ name }) => name !== main_module),
  ];
  const modules: string[] = [];
  for (const file of ordered) {
    const name = file.name.replaceAll("/", "_");
    await writeFile(join(folder, name), Buffer.from(await file.arrayBuffer()));
    const kind = file.type.startsWith("application/javascript") ? "esModule" : "text";
    modules.push(`(name = ${JSON.stringify(file.name)}, ${kind} = embed ${JSON.stringify(name)})`);
  }
  const path = join(folder, `${main_module}.capnp`);
  await writeFile(
    path,
    `using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [(name = "main", worker = (
    modules = [${modules.join(", ")}],
    compatibilityDate = ${JSON.stringify(compatibility_date)},
    compatibilityFlags = ${JSON.stringify(compatibility_flags)},
  ))],
  sockets = [(name = "http", http = (), service = "main")],
);`,
  );
  return path;
}

/** What workerd says against a Worker's code and settings: from the command line it serves one all the same. */
async function complaintsOf(config: string): Promise<string> {
  const port = await freePort();
  const child = spawn(workerd, ["serve", config, `--socket-addr=http=127.0.0.1:${port}`]);
  let [said, over] = ["", false];
  child.stderr.on("data", (data: Buffer) => {
    said += data.toString();
  });
  const ended = new Promise<void>((resolve) => child.once("exit", () => resolve()));
  void ended.then(() => {
    over = true;
  });
  try {
    for (;;) {
      const isThere = await fetch(`http://127.0.0.1:${port}/`).then(
        () => true,
        () => false,
      );
      if (over) return said;
      // A Worker without its bindings has much to say as well.
      if (isThere) return (said.match(/^service main: .*$/gm) ?? []).join("\n");
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  } finally {
    child.kill("SIGKILL");
    await ended;
  }
}

test.each(["wrangler.toml", "src/provisioner/wrangler.toml"])(
  "workerd takes what is uploaded of %s",
  async (config) => {
    const form = await uploadFormOf(config);
    expect(await complaintsOf(await configure(form, metadataOf(form)))).toBe("");
  },
);

test.each([
  ["wrangler.toml", "src/provisioner/"],
  ["src/provisioner/wrangler.toml", "src/edge/"],
])("what is uploaded of %s has nothing of the other Worker in it", async (config, other) => {
  const form = await uploadFormOf(config);
  const main = form.get(metadataOf(form).main_module) as File;
  // esbuild names each file over its text.
  const files = [...(await main.text()).matchAll(/^\/\/ (\S+\.ts)$/gm)].map(([, file]) => file ?? "");
  expect(files.length).toBeGreaterThan(50);
  expect(files.filter((file) => file.includes(other))).toEqual([]);
});

test("a flag that its date brings is refused, as an upload was", async () => {
  const form = await uploadFormOf("src/provisioner/wrangler.toml");
  const metadata = { ...metadataOf(form), compatibility_flags: ["nodejs_compat"] };
  expect(await complaintsOf(await configure(form, metadata))).toContain(
    "nodejs_compat became the default as of 2026-08-04",
  );
});

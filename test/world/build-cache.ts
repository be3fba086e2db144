// What takes seconds to build and depends on the sources alone is built once and kept under the sources' content, beside the
// packages: `npm ci` takes it away.
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readdir, readFile, rename, rm, stat, utimes } from "node:fs/promises";
import { join, relative } from "node:path";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("../../", import.meta.url).href);
const KEPT = join(ROOT, "node_modules/.cache/clawcloud");
const UNUSED_MS = 86_400_000;

const underWay = new Map<string, Promise<void>>();

/**
 * The folder that `make` has filled from these files and folders (paths in the repository). Processes that miss it at the
 * same time each make one, and the first to finish is kept.
 */
export async function builtOnce(
  name: string,
  sources: readonly string[],
  make: (folder: string) => Promise<void>,
): Promise<string> {
  const kept = join(KEPT, `${name}-${await digestOf(sources)}`);
  if (!existsSync(kept)) {
    const made = underWay.get(kept) ?? build(kept, make);
    underWay.set(kept, made);
    await made.finally(() => underWay.delete(kept));
  }
  const now = new Date();
  await utimes(kept, now, now);
  return kept;
}

async function build(kept: string, make: (folder: string) => Promise<void>): Promise<void> {
  await mkdir(KEPT, { recursive: true });
  await removeUnused();
  const folder = await mkdtemp(join(KEPT, ".making-"));
  try {
    await make(folder);
    // Another process may have been faster: its folder holds the same.
    await rename(folder, kept).catch((cause) => {
      if (!existsSync(kept)) throw cause;
    });
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

async function digestOf(sources: readonly string[]): Promise<string> {
  const hash = createHash("sha256");
  for (const file of (await Promise.all(sources.map(filesOf))).flat().sort()) {
    hash.update(`${relative(ROOT, file)}\0`);
    hash.update(
      createHash("sha256")
        .update(await readFile(file))
        .digest(),
    );
  }
  return hash.digest("hex").slice(0, 16);
}

async function filesOf(source: string): Promise<string[]> {
  const path = join(ROOT, source);
  if (!(await stat(path)).isDirectory()) return [path];
  const entries = await readdir(path, { recursive: true, withFileTypes: true });
  return entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
}

/** What no run has used for a day. */
async function removeUnused(): Promise<void> {
  for (const name of await readdir(KEPT)) {
    const used = await stat(join(KEPT, name)).catch(() => undefined);
    if (used !== undefined && Date.now() - used.mtimeMs > UNUSED_MS) {
      await rm(join(KEPT, name), { recursive: true, force: true });
    }
  }
}

// What takes seconds to build and depends on the sources alone is built once and kept under the sources' content, beside the
// packages: `npm ci` takes it away.
import { createHash } from "node:crypto";
import { mkdir, mkdtemp, readdir, readFile, rename, rm, rmdir, stat, utimes } from "node:fs/promises";
import { join, relative } from "node:path";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("../../", import.meta.url).href);
const KEPT = join(ROOT, "node_modules/.cache/clawcloud");
const UNUSED_MS = 86_400_000;
/** Whoever builds renews its lock this often; a lock that is older than `STALE_MS` has lost its owner. */
const RENEW_MS = 2_000;
const STALE_MS = 15_000;
const LOOK_MS = 200;

const underWay = new Map<string, Promise<void>>();

/**
 * The folder that `make` has filled from these files and folders (paths in the repository). Of the processes that miss it at
 * the same time one makes it and the others wait.
 */
export async function builtOnce(
  name: string,
  sources: readonly string[],
  make: (folder: string) => Promise<void>,
): Promise<string> {
  const kept = join(KEPT, `${name}-${await digestOf(sources)}`);
  if (!(await use(kept))) {
    const made = underWay.get(kept) ?? build(kept, make);
    underWay.set(kept, made);
    await made.finally(() => underWay.delete(kept));
  }
  return kept;
}

/** Marks a file or folder as used now; false where there is none. */
async function use(path: string): Promise<boolean> {
  const now = new Date();
  try {
    await utimes(path, now, now);
    return true;
  } catch (error) {
    if (codeOf(error) === "ENOENT") return false;
    throw error;
  }
}

async function build(kept: string, make: (folder: string) => Promise<void>): Promise<void> {
  await mkdir(KEPT, { recursive: true });
  await removeUnused();
  const lock = `${kept}.lock`;
  for (;;) {
    if (await use(kept)) return;
    if (await take(lock)) break;
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
  }
  const renewing = setInterval(() => {
    use(lock).catch(() => undefined);
  }, RENEW_MS);
  try {
    // The owner before may have finished since the look.
    if (!(await use(kept))) await fill(kept, make);
  } finally {
    clearInterval(renewing);
    await rmdir(lock).catch(ignoreGone);
  }
}

/** Makes the lock's folder. One that is stale is removed first: two processes that do so at once build both, and no more. */
async function take(lock: string): Promise<boolean> {
  try {
    await mkdir(lock);
    return true;
  } catch (error) {
    if (codeOf(error) !== "EEXIST") throw error;
  }
  const taken = await stat(lock).catch(ignoreGone);
  if (taken !== undefined && Date.now() - taken.mtimeMs > STALE_MS) await rmdir(lock).catch(ignoreGone);
  return false;
}

async function fill(kept: string, make: (folder: string) => Promise<void>): Promise<void> {
  const folder = await mkdtemp(join(KEPT, ".making-"));
  try {
    await make(folder);
    // Another process may have been faster, where both took a stale lock: its folder holds the same.
    await rename(folder, kept).catch(async (cause: unknown) => {
      if (!(await use(kept))) throw cause;
    });
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

const codeOf = (error: unknown): unknown => (error instanceof Error && "code" in error ? error.code : undefined);

function ignoreGone(error: unknown): undefined {
  if (codeOf(error) !== "ENOENT") throw error;
}

async function digestOf(sources: readonly string[]): Promise<string> {
  const hash = createHash("sha256");
  for (const file of await sourceFiles(sources)) {
    hash.update(`${relative(ROOT, file)}\0`);
    hash.update(
      createHash("sha256")
        .update(await readFile(file))
        .digest(),
    );
  }
  return hash.digest("hex").slice(0, 16);
}

/** What tools write among the sources: wrangler does with each build, beside its configuration. */
const NO_SOURCES = [".wrangler", "node_modules"];

/** The files below these files and folders of the repository, as whole paths, in an order that stays the same. */
export async function sourceFiles(sources: readonly string[]): Promise<string[]> {
  return (await Promise.all(sources.map((source) => filesOf(join(ROOT, source))))).flat().sort();
}

async function filesOf(path: string): Promise<string[]> {
  if (!(await stat(path)).isDirectory()) return [path];
  const entries = (await readdir(path, { withFileTypes: true })).filter(({ name }) => !NO_SOURCES.includes(name));
  const below = (entry: (typeof entries)[number]) => filesOf(join(path, entry.name));
  return (await Promise.all(entries.filter((entry) => entry.isFile() || entry.isDirectory()).map(below))).flat();
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

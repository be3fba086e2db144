// The examples of README.md, run as a reader runs them: the same text, in a folder of its own.
import { execFile } from "node:child_process";
import { mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { promisify } from "node:util";

const run = promisify(execFile);
/** A purchase takes some ten seconds: an example that waits for what does not come is ended. */
const TIMEOUT_MS = 180_000;
const readme = readFileSync("README.md", "utf8");

/** The block of a language under a heading. */
export function exampleOf(heading: string, language: string): string {
  const [, chapter = ""] = readme.split(new RegExp(`^##+ ${heading}$`, "m"));
  const [, text] = new RegExp(`^\`\`\`${language}\\n(.*?)^\`\`\`$`, "ms").exec(chapter.split(/^##+ /m)[0] ?? "") ?? [];
  if (text === undefined) throw new Error(`README.md has no ${language} under "${heading}"`);
  return text;
}

/** What it prints. Keys and hosts are kept in the folder, which is its home as well. */
export async function runExample(
  heading: string,
  language: "js" | "sh",
  folder: string,
  variables: Record<string, string>,
): Promise<string> {
  mkdirSync(folder, { recursive: true });
  const options = { cwd: folder, env: { ...process.env, ...variables, HOME: folder }, timeout: TIMEOUT_MS };
  const text = exampleOf(heading, language);
  if (language === "sh") return (await run("sh", ["-ec", text], options)).stdout;
  symlinkSync(resolve("node_modules"), join(folder, "node_modules"));
  writeFileSync(join(folder, "buy.mjs"), text);
  return (await run(process.execPath, ["buy.mjs"], options)).stdout;
}

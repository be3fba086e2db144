// The two files that hold a deployment's secrets.
import { readFileSync } from "node:fs";

export const EDGE_SECRETS = ".secrets/edge.json";
export const PROVISIONER_SECRETS = ".secrets/provisioner.json";

/** A file's JSON. Its parser's own message would quote what stands beside the fault, which may be a key. */
export function readJson(file: string): unknown {
  const text = readFileSync(file, "utf8");
  try {
    return JSON.parse(text);
  } catch {
    throw new Error(`${file} is not valid JSON`);
  }
}

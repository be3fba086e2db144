// An operator's checkout: the two configurations as they are in the repository, with settings filled in, and the secrets.
import { cp, mkdir, readFile, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";

const FILES = { edge: "wrangler.toml", provisioner: "src/provisioner/wrangler.toml" } as const;
const isSecret = (name: string) => /^RPC_URLS$|^DATA_|_(?:PRIVATE|API)_KEY|_SECRET$|^ALERT_|^CDP_/.test(name);

export type Variables = { edge: Record<string, string>; provisioner: Record<string, string> };

/** Writes both Workers' variables where a deployment looks for them. `secrets: false` leaves out the files of secrets. */
export async function writeCheckout(
  folder: string,
  variables: Variables,
  { databaseId, secrets = true }: { databaseId: string; secrets?: boolean },
): Promise<void> {
  await cp("migrations", join(folder, "migrations"), { recursive: true });
  await mkdir(join(folder, ".secrets"), { recursive: true });
  for (const worker of ["edge", "provisioner"] as const) {
    const entries = Object.entries(variables[worker]);
    const plain = entries.filter(([name]) => !isSecret(name));
    const lines = plain.map(([name, value]) => `${name} = ${JSON.stringify(value)}\n`).join("");
    const text = (await readFile(FILES[worker], "utf8"))
      .replace(/\[vars\]\n(?:[^[\n].*\n)*/, `[vars]\n${lines}`)
      .replace(/^database_id = .*$/m, `database_id = "${databaseId}"`);
    const file = join(folder, FILES[worker]);
    await mkdir(dirname(file), { recursive: true });
    await writeFile(file, text);
    if (!secrets) continue;
    const hidden = Object.fromEntries(entries.filter(([name]) => isSecret(name)));
    await writeFile(join(folder, `.secrets/${worker}.json`), JSON.stringify(hidden), { mode: 0o600 });
  }
}

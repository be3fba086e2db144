// `npm run deploy`: checks what both Workers would run with, then deploys them with wrangler, the edge first. Arguments
// go to wrangler: `npm run deploy -- --dry-run` builds both and uploads nothing.
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { secp256k1 } from "@noble/curves/secp256k1.js";
import { privateKeyToAddress } from "viem/accounts";
import { type Environment, readEnvironment, WORKERS, type WorkerName } from "./environment.ts";
import { WRANGLER } from "./wrangler.ts";

/** What has to be the same on both sides. */
const SHARED = [
  "DEPLOYMENT_ID",
  "CHAIN_ID",
  "CONTRACT_ADDRESS",
  "PURCHASE_EVENT",
  "EXPIRY_GRACE_SECONDS",
  "CONFIRMATIONS",
  "USDC_ADDRESS",
  "USDC_NAME",
  "QUOTE_SECONDS",
  "CAPTURE_FIRST_TIERS",
];
const PLACEHOLDER_ID = /^0{8}-/;
/** Without a file the secrets at Cloudflare stay as they are: the check takes these for them. */
const UPLOADED_BEFORE = {
  RPC_URLS: "https://rpc.invalid",
  DATA_PRIVATE_KEY: "11".repeat(32),
  DATA_PUBLIC_KEY: "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798",
  VULTR_API_KEY: "uploaded before",
  RUNPOD_API_KEY: "uploaded before",
};

const args = process.argv.slice(2);
const dryRun = args.includes("--dry-run");
const environments = { edge: readEnvironment("edge"), provisioner: readEnvironment("provisioner") };
const problems = [...check("edge"), ...check("provisioner"), ...compare(environments.edge, environments.provisioner)];
for (const problem of problems) console.error(`! ${problem}`);
if (problems.length > 0 && !dryRun) {
  console.error('Nothing was deployed. README, "Deploy", says what each setting is.');
  process.exit(1);
}
for (const { file, secrets } of Object.values(WORKERS)) {
  console.log(`\n${file}`);
  if (!existsSync(secrets)) console.log(`There is no ${secrets}: the Worker keeps the secrets that it has.`);
  const upload = existsSync(secrets) && !dryRun ? ["--secrets-file", secrets] : [];
  const { status } = spawnSync(process.execPath, [WRANGLER, "deploy", "-c", file, ...upload, ...args], {
    stdio: "inherit",
  });
  if (status !== 0) process.exit(status ?? 1);
}
if (problems.length > 0)
  console.log(`\nBuilt. A deployment refuses until the ${problems.length} lines above are settled.`);

/** What the Worker itself would say of this environment, in one line each. */
function check(name: WorkerName): string[] {
  const { vars, secrets, bindings, databases } = environments[name];
  const { file, parse } = WORKERS[name];
  const found: string[] = [];
  if (databases.some(({ id }) => id === undefined || PLACEHOLDER_ID.test(id))) {
    found.push(`${file}: database_id is not set; "npx wrangler d1 create clawcloud" prints it`);
  }
  try {
    parse({ ...vars, ...(secrets ?? UPLOADED_BEFORE), ...bindings });
  } catch (error) {
    const [, list = String(error)] = /refuses to run: (.*)\.$/s.exec((error as Error).message) ?? [];
    for (const item of list.split("; ")) found.push(`${name}: ${item}`);
  }
  return found;
}

function compare(edge: Environment, provisioner: Environment): string[] {
  const found = SHARED.filter((name) => edge.vars[name] !== provisioner.vars[name]).map(
    (name) => `${name} differs between the two wrangler.toml files`,
  );
  if (edge.databases[0]?.id !== provisioner.databases[0]?.id) found.push("database_id differs between the two files");
  if ((edge.secrets === null) !== (provisioner.secrets === null)) {
    found.push("only one of the two files in .secrets exists: their data keys can't be compared");
  }
  const secret = edge.secrets?.["DATA_PRIVATE_KEY"];
  const expected = provisioner.secrets?.["DATA_PUBLIC_KEY"];
  // Sealed under a key that nobody holds, every SSH key would be lost (hard case 8).
  if (secret !== undefined && expected !== undefined && !isPair(secret, expected)) {
    found.push("DATA_PUBLIC_KEY of the provisioner does not belong to DATA_PRIVATE_KEY of the edge");
  }
  const payTo = edge.vars["X402_PAY_TO"];
  const wallet = provisioner.secrets?.["OPERATOR_PRIVATE_KEY"];
  if (typeof payTo === "string" && wallet !== undefined && !isAddressOf(payTo, wallet)) {
    found.push("X402_PAY_TO is not the address of OPERATOR_PRIVATE_KEY: every order would be refused");
  }
  return found;
}

function isAddressOf(address: string, key: string): boolean {
  try {
    return privateKeyToAddress(`0x${key.replace(/^0x/, "")}`).toLowerCase() === address.toLowerCase();
  } catch {
    return false;
  }
}

function isPair(secret: string, expected: string): boolean {
  try {
    const own = secp256k1.Point.fromBytes(secp256k1.getPublicKey(Buffer.from(secret.replace(/^0x/, ""), "hex")));
    return own.equals(secp256k1.Point.fromHex(expected.replace(/^0x/, "")));
  } catch {
    return false;
  }
}

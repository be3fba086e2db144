// The settings of both Workers as this checkout has them: what a deployment would refuse, and, for commands that have to
// work with half of them, the right ones beside the names of those that are missing or wrong.
import { secp256k1 } from "@noble/curves/secp256k1.js";
import { privateKeyToAddress } from "viem/accounts";
import type { EdgeConfig } from "../edge/config.ts";
import { ConfigError } from "../errors.ts";
import type { ProvisionerConfig } from "../provisioner/config.ts";
import { type Environment, readEnvironment, WORKERS, type WorkerName } from "./environment.ts";

type Environments = Record<WorkerName, Environment>;

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
  "PUBLIC_URLS",
];
const PLACEHOLDER_ID = /^0{8}-/;
/** Without a file the secrets at Cloudflare stay as they are: the check takes these for them. */
const SECRET_STAND_INS: Readonly<Record<string, string>> = {
  RPC_URLS: "https://rpc.invalid",
  DATA_PRIVATE_KEY: "11".repeat(32),
  DATA_PUBLIC_KEY: "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798",
  VULTR_API_KEY: "uploaded before",
  RUNPOD_API_KEY: "uploaded before",
  OPERATOR_PRIVATE_KEY: "11".repeat(32),
  ALERT_WEBHOOK_SECRET: `whsec_${"A".repeat(32)}`,
  CDP_API_KEY_ID: "uploaded-before",
  CDP_API_KEY_SECRET: `${"A".repeat(86)}==`,
};
/** Whether a variable is in a file of secrets, rather than in a wrangler.toml file. */
export const isSecretName = (name: string): boolean => name in SECRET_STAND_INS;

/** The same for what only a wrangler.toml file can say. */
const STAND_INS: Readonly<Record<string, unknown>> = {
  ...SECRET_STAND_INS,
  DEPLOYMENT_ID: "unknown",
  START_BLOCK: "0",
  PUBLIC_URLS: "https://api.invalid",
  FACILITATOR_URL: "https://facilitator.invalid",
  DB: { prepare: () => null },
  JOBS: { send: () => null },
  ...Object.fromEntries(
    ["IP_GUARD", "LOG_BOOK", "VENDOR_GATE", "OPERATOR_WALLET"].map((name) => [name, { idFromName: () => null }]),
  ),
};

/** What a deployment would refuse, in one line each. */
export const deploymentProblems = (environments: Environments): string[] => [
  ...check("edge", environments.edge),
  ...check("provisioner", environments.provisioner),
  ...compare(environments.edge, environments.provisioner),
];

/** What the Worker itself would say of this environment. */
function check(name: WorkerName, { vars, secrets, bindings, databases }: Environment): string[] {
  const { file, parse } = WORKERS[name];
  const found: string[] = [];
  if (databases.some(({ id }) => !isDatabaseId(id))) {
    found.push(`${file}: database_id is not set; "npx wrangler d1 create clawcloud" prints it`);
  }
  try {
    parse({ ...vars, ...(secrets ?? SECRET_STAND_INS), ...bindings });
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    found.push(...error.problems.map((problem) => `${name}: ${problem}`));
  }
  return found;
}

export const isDatabaseId = (id: string | undefined): id is string => id !== undefined && !PLACEHOLDER_ID.test(id);

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

/** `wrong`: why, by the names of variables whose value here is a stand-in or a default. */
export type Settled<Config> = { config: Config; wrong: ReadonlyMap<string, string> };
export type Settings = {
  folder: string;
  environments: Environments;
  edge: Settled<EdgeConfig>;
  provisioner: Settled<ProvisionerConfig>;
  /** What nothing that is printed may contain. */
  secrets: readonly string[];
};

/** Throws where a file can't be read at all. */
export function readSettings(folder = "."): Settings {
  const environments = { edge: readEnvironment("edge", folder), provisioner: readEnvironment("provisioner", folder) };
  return {
    folder,
    environments,
    edge: settle(environments.edge, WORKERS.edge.parse),
    provisioner: settle(environments.provisioner, WORKERS.provisioner.parse),
    secrets: Object.values(environments).flatMap(({ secrets }) => Object.values(secrets ?? {}).flatMap(partsOf)),
  };
}

/** Puts stand-ins where a variable is missing or wrong, until the rest can be parsed. */
function settle<Config>(
  { vars, secrets, bindings }: Environment,
  parse: (environment: object) => Config,
): Settled<Config> {
  // "npm run keys" leaves those empty that are for a person to fill in.
  const filledIn = Object.entries(secrets ?? {}).filter(([, value]) => value !== "");
  const environment: Record<string, unknown> = { ...vars, ...Object.fromEntries(filledIn), ...bindings };
  const wrong = new Map<string, string>();
  for (;;) {
    try {
      return { config: parse({ ...environment }), wrong };
    } catch (error) {
      if (!(error instanceof ConfigError)) throw error;
      const before = wrong.size;
      for (const problem of error.problems) {
        const [, name = problem, why = ""] = /^(\w+)[^:]*: (.*)$/s.exec(problem) ?? [];
        wrong.set(name, why);
        if (name in STAND_INS) environment[name] = STAND_INS[name];
        else delete environment[name];
      }
      if (wrong.size === before) throw error;
    }
  }
}

const SHORTEST_SECRET = 6;

/** A secret and, of a list of URLs, the parts of each that may be a key. */
function partsOf(value: string): string[] {
  const urls = value.split(",").flatMap((item) => (URL.canParse(item.trim()) ? [new URL(item.trim())] : []));
  const inside = urls.flatMap(({ username, password, pathname, searchParams }) => [
    username,
    password,
    ...pathname.split("/"),
    ...searchParams.values(),
  ]);
  return [value, ...value.split(",").map((item) => item.trim()), ...inside].filter(
    (part) => part.length >= SHORTEST_SECRET,
  );
}

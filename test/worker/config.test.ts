// Every variable and binding of both Workers: missing or wrong, it is named, and its value is not.
import { expect, test } from "vitest";
import { EDGE_VARIABLES, edgeConfig } from "../../src/edge/config.ts";
import { PROVISIONER_VARIABLES, provisionerConfig } from "../../src/provisioner/config.ts";
import provisioner from "../../src/provisioner/index.ts";

const shared = {
  DB: { prepare: () => null },
  JOBS: { send: () => null },
  LOG_BOOK: { idFromName: () => null },
  DEPLOYMENT_ID: "test",
  RPC_URLS: "https://one.example,https://two.example",
  PUBLIC_URLS: "https://api.example",
};
const EDGE = {
  ...shared,
  IP_GUARD: { idFromName: () => null },
  START_BLOCK: "1",
  DATA_PRIVATE_KEY: "11".repeat(32),
};
const PROVISIONER = {
  ...shared,
  VENDOR_GATE: { idFromName: () => null },
  OPERATOR_WALLET: { idFromName: () => null },
  OPERATOR_PRIVATE_KEY: "22".repeat(32),
  DATA_PUBLIC_KEY: "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798",
  VULTR_API_KEY: "key",
  RUNPOD_API_KEY: "key",
};
// Any text will do for these; the vendor is the one who knows better.
const FREE_TEXT = ["VULTR_OS", "RUNPOD_IMAGE", "VULTR_API_KEY", "RUNPOD_API_KEY"];
const WRONG = "wrong! value";

const problem = (parse: (env: object) => unknown, env: object): string => {
  try {
    parse(env);
    return "";
  } catch (error) {
    return (error as Error).message;
  }
};

const cases = [
  ...EDGE_VARIABLES.map((name) => ["edge", edgeConfig, EDGE, name] as const),
  ...PROVISIONER_VARIABLES.map((name) => ["provisioner", provisionerConfig, PROVISIONER, name] as const),
];

test("the environments these tests start from are right", () => {
  expect(problem(edgeConfig, { ...EDGE })).toBe("");
  expect(problem(provisionerConfig, { ...PROVISIONER })).toBe("");
});

test.each(cases.filter(([, , , name]) => !FREE_TEXT.includes(name)))(
  "%s: a wrong %4$s is named, and its value is not told",
  (worker, parse, env, name) => {
    const message = problem(parse, { ...env, [name]: WRONG });
    expect(message).toMatch(new RegExp(`^The ${worker} Worker refuses to run: ${name}(\\.\\d+)?: .+\\.$`));
    expect(message).not.toContain(WRONG);
  },
);

test.each(cases.filter(([, , env, name]) => name in env))(
  "%s: without %4$s it refuses to run",
  (_, parse, env, name) => {
    expect(problem(parse, { ...env, [name]: undefined })).toContain(`${name}: `);
  },
);

test("a limit for a route that does not exist, and a window of no seconds, are refused", () => {
  for (const RATE_LIMITS of ["vm=1/60", "tiers=1/0", "tiers=1"]) {
    expect(problem(edgeConfig, { ...EDGE, RATE_LIMITS })).toContain("RATE_LIMITS: ");
  }
});

test("under a wrong environment the provisioner keeps its messages and pages", async () => {
  const retried: unknown[] = [];
  const batch = {
    queue: "clawcloud-jobs",
    messages: [],
    ackAll: () => {},
    retryAll: (options: unknown) => retried.push(options),
  };
  await provisioner.queue(
    batch as never,
    { ...PROVISIONER, DATA_PUBLIC_KEY: "x" } as never,
    { waitUntil: () => undefined } as never,
  );
  expect(retried).toEqual([{ delaySeconds: 30 }]);
});

const BASE = { ...EDGE, CHAIN_ID: "8453" };
const SEPOLIA = { ...EDGE, CHAIN_ID: "84532" };
const PAY_TO = "0x23618e81E3f5cdF7f54C3d65f7FBc0aBf5B21E8f";
const CDP = { CDP_API_KEY_ID: "organizations/1/apiKeys/2", CDP_API_KEY_SECRET: `${"A".repeat(86)}==` };

test("hard case 24: payments on another network than the contract's are refused, else machines sell for play money", () => {
  const other = "X402_NETWORK: must be the contract's chain: anything else sells machines for another chain's money";
  expect(problem(edgeConfig, { ...BASE, X402_NETWORK: "eip155:84532" })).toContain(other);
  expect(problem(edgeConfig, { ...SEPOLIA, X402_NETWORK: "eip155:8453" })).toContain(other);
  expect(problem(edgeConfig, { ...BASE, X402_NETWORK: "eip155:8453" })).toBe("");
  expect(problem(edgeConfig, { ...SEPOLIA, X402_NETWORK: "eip155:84532" })).toBe("");
});

test("hard case 24: on mainnet no facilitator is trusted by default; on Sepolia it is x402.org's", () => {
  const missing = "FACILITATOR_URL: is not set, although X402_PAY_TO is, and this chain has no default";
  expect(problem(edgeConfig, { ...BASE, X402_PAY_TO: PAY_TO })).toContain(missing);
  expect(problem(edgeConfig, { ...BASE })).toBe("");
  const FACILITATOR_URL = "https://facilitator.example";
  expect(edgeConfig({ ...BASE, X402_PAY_TO: PAY_TO, FACILITATOR_URL }).FACILITATOR_URL).toBe(FACILITATOR_URL);
  const sepolia = { ...SEPOLIA, X402_PAY_TO: PAY_TO };
  expect(edgeConfig(sepolia).FACILITATOR_URL).toBe("https://x402.org/facilitator");
  expect(edgeConfig({ ...sepolia, FACILITATOR_URL }).FACILITATOR_URL).toBe(FACILITATOR_URL);
});

test("hard case 24: a facilitator that wants a JWT needs both keys", () => {
  const cdp = { ...BASE, X402_PAY_TO: PAY_TO, FACILITATOR_URL: "https://cdp.example/x402", FACILITATOR_AUTH: "cdp" };
  const { CDP_API_KEY_ID, CDP_API_KEY_SECRET } = CDP;
  expect(problem(edgeConfig, { ...cdp, CDP_API_KEY_SECRET })).toContain(
    "CDP_API_KEY_ID: is not set, although FACILITATOR_AUTH is cdp",
  );
  expect(problem(edgeConfig, { ...cdp, CDP_API_KEY_ID })).toContain(
    "CDP_API_KEY_SECRET: is not set, although FACILITATOR_AUTH is cdp",
  );
  expect(problem(edgeConfig, { ...cdp, ...CDP })).toBe("");
});

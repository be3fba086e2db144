// Every variable and binding of both Workers: missing or wrong, it is named, and its value is not.
import { expect, test } from "vitest";
import { EDGE_VARIABLES, edgeConfig, PROVISIONER_VARIABLES, provisionerConfig } from "../../src/config.ts";
import provisioner from "../../src/provisioner/index.ts";

const shared = {
  DB: { prepare: () => null },
  JOBS: { send: () => null },
  LOG_BOOK: { idFromName: () => null },
  DEPLOYMENT_ID: "test",
  RPC_URLS: "https://one.example,https://two.example",
};
const EDGE = {
  ...shared,
  IP_GUARD: { idFromName: () => null },
  START_BLOCK: "1",
  PUBLIC_URLS: "https://api.example",
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

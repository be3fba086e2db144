// `npm run test:changed`: the tests of the areas that differ from a commit, by default from the last one; on a clean tree,
// those that the last commit changed. It is no proof of the whole: `npm test` is.
import { execFileSync, spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";

/** Which tests hold what lies under a path. All lines that match count. */
export const AREAS: readonly { path: string; tests: readonly string[] }[] = [
  { path: "src/access/", tests: ["test/worker/access/"] },
  { path: "src/access/payment-", tests: ["test/worker/routes/x402/"] },
  { path: "src/access/facilitator.ts", tests: ["test/worker/routes/x402/", "test/e2e/facilitator.test.ts"] },
  { path: "src/access/(owner|signature).ts", tests: ["test/worker/routes/credentials.test.ts"] },
  { path: "src/access/operators.ts", tests: ["test/worker/routes/admin/"] },
  { path: "src/access/admin-key.ts", tests: ["test/worker/routes/admin/"] },
  { path: "src/admin/", tests: ["test/e2e/(import|deploy|operators).test.ts"] },
  { path: "src/chain/", tests: ["test/worker/chain/"] },
  { path: "src/chain/(authorization|coin|offers|orders)", tests: ["test/worker/provisioner/(order|payment|wallet)"] },
  { path: "src/credentials/", tests: ["test/worker/credentials/"] },
  { path: "src/db/", tests: ["test/worker/db/", "test/worker/chain/", "test/e2e/sim.test.ts"] },
  { path: "src/db/(payments|orders).ts", tests: ["test/worker/provisioner/(order|payment|wallet)"] },
  { path: "src/db/(vms|ends|reap|refunds|delivery).ts", tests: ["test/worker/provisioner/(create|end|reap|refund)"] },
  { path: "src/provisioner/", tests: ["test/worker/provisioner/"] },
  { path: "src/routes/", tests: ["test/worker/routes/"] },
  { path: "src/vms/", tests: ["test/worker/vms/", "test/worker/provisioner/"] },
  { path: "src/[^/]+$", tests: ["test/worker/[^/]+.test.ts", "test/worker/routes/(public|bad-input)"] },
  { path: "durable-objects/ip-guard.ts", tests: ["test/worker/access/", "test/e2e/restart.test.ts"] },
  { path: "durable-objects/log-book.ts", tests: ["test/worker/log.test.ts"] },
  { path: "durable-objects/vendor-gate.ts", tests: ["test/worker/provisioner/(failover|reap|create)"] },
  {
    path: "durable-objects/(operator-wallet|wallet-ledger).ts",
    tests: ["test/worker/provisioner/(wallet|order|refund)"],
  },
  { path: "migrations/", tests: ["test/worker/db/", "test/e2e/d1-stand-in.test.ts"] },
  { path: "test/worker/[^/]+$", tests: ["test/worker/vms/", "test/worker/chain/"] },
  ...["access", "routes/x402", "routes/admin"].map((area) => ({
    path: `test/worker/${area}/`,
    tests: [`test/worker/${area}/`],
  })),
  { path: "test/world/", tests: ["test/e2e/(start|world-chain).test.ts"] },
  { path: "test/sim/", tests: ["test/e2e/(sim|d1-stand-in).test.ts"] },
  { path: "test/chaos/", tests: ["test/e2e/chaos.test.ts"] },
  { path: "test/bench/", tests: ["test/e2e/bench.test.ts"] },
  { path: "test/(e2e|long)/", tests: ["test/e2e/(repository|fuzz).test.ts"] },
  { path: "test/[^/]+$", tests: ["test/e2e/repository.test.ts"] },
  { path: "[^/]+$", tests: ["test/e2e/(repository|deploy).test.ts"] },
  { path: "\\.", tests: ["test/e2e/repository.test.ts"] },
];

/** The tests, of those that exist, for files that changed; a test that changed is one of them. */
export function testsOf(changed: readonly string[], existing: readonly string[]): string[] {
  const wanted = changed.flatMap((file) =>
    file.endsWith(".test.ts") ? [file] : AREAS.filter(({ path }) => isUnder(file, path)).flatMap(({ tests }) => tests),
  );
  return existing.filter((test) => wanted.some((path) => isUnder(test, path)));
}

const isUnder = (file: string, path: string) => new RegExp(`^(?:${path.replaceAll(".ts", "\\.ts")})`).test(file);

const git = (...args: string[]) =>
  execFileSync("git", args, { encoding: "utf8" })
    .split("\n")
    .filter((line) => line !== "");

export const listTests = () =>
  [...git("ls-files", "test"), ...git("ls-files", "--others", "--exclude-standard", "test")].filter(
    (file) => file.endsWith(".test.ts") && !file.startsWith("test/long/"),
  );

function run(base: string | undefined): number {
  const untracked = git("ls-files", "--others", "--exclude-standard");
  let changed = [...git("diff", "--name-only", base ?? "HEAD"), ...untracked];
  if (changed.length === 0 && base === undefined) changed = git("diff", "--name-only", "HEAD~1");
  const tests = testsOf(changed, listTests());
  if (tests.length === 0) {
    console.log("Nothing that a test holds has changed.");
    return 0;
  }
  console.log(`${changed.length} changed files, ${tests.length} test files. The whole: npm test`);
  return (
    spawnSync("vitest", ["run", "--project", "worker", "--project", "e2e", ...tests], { stdio: "inherit" }).status ?? 1
  );
}

if (process.argv[1] === fileURLToPath(import.meta.url)) process.exit(run(process.argv[2]));

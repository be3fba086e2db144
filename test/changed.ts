// `npm run test:changed`: the tests of what is not committed or, on a clean tree, of what the last commit changed; with a
// commit as its argument, of what differs from that one. It does not prove the whole: `npm test` does.
import { execFileSync, spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";

const worker = (...areas: readonly string[]) => areas.map((area) => `test/worker/${area}`);
const e2e = (...names: readonly string[]) => names.map((name) => `test/e2e/${name}.test.ts`);
const orders = worker("provisioner/payments/(order|payment|wallet|batches|held-tokens)");
const machines = worker("provisioner/(machines/(create|failover)|queue)");

/** Which tests hold what lies under a path. Every line that matches counts; both sides are the beginning of an expression. */
const AREAS: readonly { path: string; tests: readonly string[] }[] = [
  { path: "src/edge/access/", tests: worker("edge/access/") },
  { path: "src/edge/payments/", tests: worker("edge/payments/", "edge/routes/x402/") },
  { path: "src/edge/access/(owner|signature|admission)", tests: worker("edge/routes/credentials") },
  { path: "src/(edge/access/operators|credentials/admin-key)", tests: worker("edge/routes/admin/") },
  { path: "src/edge/access/(body|headers|screening)", tests: worker("edge/routes/bad-input") },
  { path: "src/edge/(access/(known-clients|overruns)|routes/health)", tests: e2e("flood") },
  { path: "src/admin/[^/]+$", tests: e2e("(import|deploy|operators)") },
  { path: "src/admin/(doctor|smoke|settings|environment)", tests: e2e("(deploy|operators)") },
  { path: "test/world/(checkout|cloudflare|vendor-accounts)", tests: e2e("(deploy|operators)") },
  { path: "src/(chain/|edge/(scan|gaps))", tests: worker("chain/", "edge/(scan|gaps)") },
  { path: "src/edge/cron", tests: worker("provisioner/work-without-database") },
  { path: "src/chain/client", tests: worker("edge/routes/credentials", "edge/access/smart-wallet") },
  { path: "src/chain/(authorization|coin|offers|orders)", tests: orders },
  { path: "src/chain/(client|witness)", tests: worker("provisioner/faulty-nodes") },
  {
    path: "src/chain/(contract-signature|plain-signature|wallet-factories)",
    tests: worker("edge/access/(smart-wallet|signature)"),
  },
  {
    path: "src/chain/(contract-signature|orders)",
    tests: worker("provisioner/(payments/hostile-wallets|payments/purchases-at-once)"),
  },
  { path: "src/credentials/", tests: worker("credentials/") },
  { path: "src/db/", tests: worker("db/", "chain/", "edge/(scan|gaps)") },
  { path: "src/db/client", tests: worker("edge/routes/routes-without", "provisioner/work-without") },
  { path: "src/db/(payments|orders)", tests: orders },
  {
    path: "src/db/(vms|ends|reap|refunds|sweep)",
    tests: worker("provisioner/(machines/create|machines/end|machines/reap|refunds/refund)"),
  },
  { path: "src/db/(delivery|wallets|reads)", tests: worker("edge/routes/(credentials|agents|public)") },
  { path: "src/db/(admin-keys|bans|operators|pauses|disputes|data-keys)", tests: worker("edge/routes/admin/") },
  { path: "src/db/bans", tests: worker("edge/access/") },
  { path: "src/db/data-keys", tests: worker("credentials/") },
  { path: "src/db/import", tests: e2e("import") },
  { path: "src/provisioner/(machines/|refunds/owe)", tests: machines },
  {
    path: "src/provisioner/machines/(create|refused|boot|find|keep)",
    tests: worker("provisioner/machines/vendor-answers"),
  },
  {
    path: "src/provisioner/machines/(cloud-init|machine-note)",
    tests: e2e("cloud-init", "pod-arguments", "machine-boot"),
  },
  {
    path: "src/(model/ports|provisioner/(machines/machine-note|vendors/vultr-firewall))",
    tests: worker("provisioner/machines/ports"),
  },
  { path: "src/provisioner/machines/catalog", tests: worker("provisioner/machines/catalog") },
  { path: "test/e2e/machine-boot", tests: e2e("machine-boot") },
  {
    path: "src/(model/jobs|provisioner/(config|consume|context|index|run-steps|wrangler))",
    tests: worker("provisioner/(queue|machines/create|restore|work-without-database)"),
  },
  {
    path: "src/provisioner/machines/(clear|end|reap|verify)",
    tests: worker("provisioner/(machines/end|machines/reap|restore)"),
  },
  {
    path: "src/(provisioner/refunds/|db/refunds|model/refund)",
    tests: worker("provisioner/refunds/refund", "provisioner/payments/payment", "edge/routes/admin/(payments|refunds)"),
  },
  { path: "src/provisioner/machines/rotate", tests: worker("provisioner/machines/rotate") },
  { path: "src/(provisioner/(payments/|wallet)|model/(payment|terms))", tests: orders },
  {
    path: "src/provisioner/vendors/",
    tests: worker("provisioner/vendors/", "provisioner/(machines/create|machines/reap|machines/vendor-answers)"),
  },
  { path: "src/edge/routes/[^/]+$", tests: worker("edge/routes/[^/]+.test.ts") },
  { path: "src/edge/routes/admin/", tests: worker("edge/routes/admin/") },
  { path: "src/edge/routes/x402/", tests: worker("edge/routes/x402/") },
  {
    path: "src/(edge/delivery|model/(machine-life|lives))",
    tests: worker("edge/routes/credentials", "provisioner/machines/create"),
  },
  { path: "src/edge/reconcile", tests: worker("edge/routes/admin/payments") },
  {
    path: "(src/(model/[a-z]+-?life|db/(schema|stages))|test/lives)",
    tests: [...worker("model/"), ...e2e("repository")],
  },
  { path: "src/edge/sweep", tests: worker("provisioner/(queue|machines/end|payments/payment)", "edge/ends") },
  { path: "src/edge/standing", tests: worker("edge/standing") },
  { path: "src/model/(shop|machine-life)", tests: worker("edge/routes/pause") },
  { path: "src/(edge/waits|model/tiers)", tests: worker("edge/waits", "edge/routes/public") },
  { path: "src/(model/stock|edge/routes/tiers)", tests: worker("provisioner/machines/failover", "edge/routes/public") },
  { path: "src/model/client-name", tests: worker("edge/access/(screening|limits|ip-guard)") },
  { path: "src/model/purchase-key", tests: worker("chain/", "provisioner/machines/reap") },
  { path: "src/(edge/)?[^/]+$", tests: worker("[^/]+.test.ts", "edge/routes/(public|bad-input)") },
  {
    path: "src/outbound",
    tests: [...worker("provisioner/(machines/banner|machines/create|payments/wallet)"), ...e2e("sim")],
  },
  { path: "src/(edge/app|errors)", tests: worker("db/client", "edge/routes/routes-without-database") },
  { path: "durable-objects/ip-guard", tests: [...worker("edge/access/"), ...e2e("(restart|flood)")] },
  { path: "durable-objects/log-book", tests: [...worker("log.test.ts"), ...e2e("operators")] },
  {
    path: "durable-objects/vendor-gate",
    tests: worker("provisioner/(machines/failover|machines/reap|machines/create|machines/vendor-answers)"),
  },
  {
    path: "durable-objects/(operator-wallet|wallet-)",
    tests: worker("provisioner/(payments/wallet|payments/order|refunds/refund)"),
  },
  { path: "migrations/", tests: [...worker("db/"), ...e2e("d1-stand-in", "migrations")] },
  { path: "test/world/migrations", tests: e2e("d1-stand-in", "migrations") },
  { path: "(src/provisioner/)?wrangler.toml", tests: e2e("deploy", "upload") },
  { path: "test/worker/[^/]+$", tests: worker("chain/", "edge/ends") },
  { path: "test/worker/edge/[^/]+$", tests: worker("edge/(scan|gaps)") },
  ...["edge/access", "chain", "edge/routes/x402", "edge/routes/admin"].map((area) => ({
    path: `test/worker/${area}/`,
    tests: worker(`${area}/`),
  })),
  {
    path: "test/world/(start|show|guide|narrator|signs-of-life|signals|dev|kept|log-lines|world|http|agent)",
    tests: e2e("start"),
  },
  { path: "test/world/(http|server)", tests: e2e("connections") },
  { path: "test/world/(facilitator|payer)", tests: e2e("local-facilitator", "x402") },
  {
    path: "test/world/(bare-workers|build-cache|wrangler-reads|shop)",
    tests: e2e("restart", "import", "flood", "upload"),
  },
  {
    path: "test/world/(vultr|runpod|vendor-server|ssh-)",
    tests: [...worker("provisioner/(vendors/|machines/hard-vendors)"), ...e2e("main-job")],
  },
  {
    path: "test/world/bad-day",
    tests: [...worker("db/client", "edge/routes/routes-without", "provisioner/work-without")],
  },
  { path: "test/world/(vendor-words|pod-log)", tests: worker("provisioner/(vendors/words|machines/vendor-answers)") },
  { path: "test/world/vendor-words", tests: e2e("sim") },
  { path: "test/world/pod-arguments", tests: [...e2e("pod-arguments"), ...worker("provisioner/machines/create")] },
  { path: "test/world/(disk|shell|sftp|ssh-)", tests: e2e("ssh-door") },
  { path: "test/world/silent-port", tests: worker("provisioner/(machines/banner|machines/hard-vendors)") },
  { path: "test/worker/paged", tests: worker("edge/standing") },
  { path: "test/world/pager", tests: worker("log.test.ts") },
  { path: "test/world/(accounts|chain|contracts|rpc-proxy|addresses|ports)", tests: e2e("world-chain", "repository") },
  { path: "test/sim/", tests: e2e("(sim|d1-stand-in)") },
  { path: "test/chaos/", tests: e2e("chaos") },
  { path: "test/bench/", tests: e2e("bench") },
  { path: "test/e2e/chaos-run", tests: e2e("chaos") },
  { path: "test/e2e/child", tests: e2e("chaos", "start") },
  { path: "test/e2e/vendor-documents", tests: e2e("main-job", "fuzz") },
  { path: "test/e2e/fuzz", tests: e2e("fuzz") },
  { path: "test/(e2e|long)/attack", tests: e2e("fuzz") },
  { path: "test/rows", tests: [...worker("db/(payments|costs)"), ...e2e("d1-stand-in")] },
  { path: "test/[^/]+$", tests: e2e("test-run") },
  { path: "vitest.config", tests: e2e("test-run") },
  { path: "[^/]+$", tests: e2e("repository", "deploy") },
  { path: "(src/|src/admin/|src/edge/|test/)README", tests: e2e("repository", "deploy") },
  { path: "README", tests: e2e("main-job", "start") },
  { path: "(\\.github/npm-start|test/world/picture)", tests: e2e("start") },
  { path: "test/e2e/examples", tests: e2e("main-job") },
  { path: "\\.", tests: e2e("repository") },
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

/** What is in the repository or would be with the next `git add .`; paths narrow it. */
export const listFiles = (...paths: readonly string[]) =>
  git("ls-files", "--cached", "--others", "--exclude-standard", ...paths);

/** Every test of `npm test`. */
export const listTests = () =>
  listFiles("test").filter((file) => file.endsWith(".test.ts") && !file.startsWith("test/long/"));

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
  const args = ["vitest", "run", "--project", "worker", "--project", "e2e", ...tests];
  const { status, error } = spawnSync("npx", args, { stdio: "inherit" });
  if (error !== undefined) console.error(error);
  return status ?? 1;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) process.exit(run(process.argv[2]));

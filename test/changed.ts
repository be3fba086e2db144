// `npm run test:changed`: the tests of what is not committed or, on a clean tree, of what the last commit changed; with a
// commit as its argument, of what differs from that one. It does not prove the whole: `npm test` does.
import { execFileSync, spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";

const worker = (...areas: readonly string[]) => areas.map((area) => `test/worker/${area}`);
const e2e = (...names: readonly string[]) => names.map((name) => `test/e2e/${name}.test.ts`);
const orders = worker("provisioner/(order|payment|wallet|batches|held-tokens)");
const machines = worker("provisioner/(create|failover|queue)");

/** Which tests hold what lies under a path. Every line that matches counts; both sides are the beginning of an expression. */
const AREAS: readonly { path: string; tests: readonly string[] }[] = [
  { path: "src/access/", tests: worker("access/") },
  { path: "src/access/(payment-|facilitator)", tests: worker("routes/x402/") },
  { path: "src/access/(owner|signature|admission)", tests: worker("routes/credentials") },
  { path: "src/access/(operators|admin-key)", tests: worker("routes/admin/") },
  { path: "src/access/(body|headers|screening)", tests: worker("routes/bad-input") },
  { path: "src/(access/(known-clients|overruns)|routes/health)", tests: e2e("flood") },
  { path: "src/admin/[^/]+$", tests: e2e("(import|deploy|operators)") },
  { path: "src/admin/(doctor|smoke|settings|environment)", tests: e2e("(deploy|operators)") },
  { path: "test/world/(checkout|cloudflare|vendor-accounts)", tests: e2e("(deploy|operators)") },
  { path: "src/chain/", tests: worker("chain/") },
  { path: "src/chain/poll", tests: worker("provisioner/database-down") },
  { path: "src/chain/client", tests: worker("routes/credentials", "access/smart-wallet") },
  { path: "src/chain/(authorization|coin|offers|orders)", tests: orders },
  { path: "src/chain/(client|witness)", tests: worker("provisioner/faulty-nodes") },
  {
    path: "src/chain/(contract-signature|plain-signature|wallet-factories)",
    tests: worker("access/(smart-wallet|signature)"),
  },
  { path: "src/chain/(contract-signature|orders)", tests: worker("provisioner/(hostile-wallets|purchases-at-once)") },
  { path: "src/credentials/", tests: worker("credentials/") },
  { path: "src/db/", tests: worker("db/", "chain/") },
  { path: "src/db/client", tests: worker("(routes|provisioner)/database-down") },
  { path: "src/db/(payments|orders)", tests: orders },
  { path: "src/db/(vms|ends|reap|refunds|sweep)", tests: worker("provisioner/(create|end|reap|refund)") },
  { path: "src/db/(delivery|wallets|reads)", tests: worker("routes/(credentials|agents|public)") },
  { path: "src/db/(admin-keys|bans|operators|pauses|disputes|data-keys)", tests: worker("routes/admin/") },
  { path: "src/db/bans", tests: worker("access/") },
  { path: "src/db/data-keys", tests: worker("credentials/") },
  { path: "src/db/import", tests: e2e("import") },
  { path: "src/provisioner/(candidates|catalog|create|refused|watch|banner|cloud-init)", tests: machines },
  { path: "src/provisioner/(create|refused|watch)", tests: worker("provisioner/vendor-answers") },
  { path: "src/provisioner/(cloud-init|machine-note)", tests: e2e("cloud-init", "pod-arguments", "machine-boot") },
  { path: "src/(vms/ports|provisioner/(machine-note|vendors/vultr-firewall))", tests: worker("provisioner/ports") },
  { path: "src/provisioner/catalog", tests: worker("provisioner/catalog") },
  { path: "test/e2e/machine-boot", tests: e2e("machine-boot") },
  {
    path: "src/provisioner/(consume|context|index|jobs|wrangler)",
    tests: worker("provisioner/(queue|create|restore|database-down)"),
  },
  { path: "src/provisioner/(end|reap|verify)", tests: worker("provisioner/(end|reap|restore)") },
  { path: "src/provisioner/refund", tests: worker("provisioner/refund", "routes/admin/refunds") },
  { path: "src/provisioner/rotate", tests: worker("provisioner/rotate") },
  { path: "src/provisioner/(order|payment)", tests: orders },
  {
    path: "src/provisioner/vendors/",
    tests: worker("provisioner/vendors/", "provisioner/(create|reap|vendor-answers)"),
  },
  { path: "src/routes/[^/]+$", tests: worker("routes/[^/]+.test.ts") },
  { path: "src/routes/admin/", tests: worker("routes/admin/") },
  { path: "src/routes/x402/", tests: worker("routes/x402/") },
  { path: "src/vms/(delivery|states)", tests: worker("routes/credentials", "provisioner/create") },
  { path: "src/vms/payments", tests: orders },
  { path: "src/vms/reconcile", tests: worker("routes/admin/payments") },
  { path: "src/vms/refunds", tests: worker("provisioner/refund") },
  { path: "src/vms/sweep", tests: worker("provisioner/(queue|end|payment)", "vms/ends") },
  { path: "src/vms/standing", tests: worker("vms/standing") },
  { path: "src/vms/(shop|states)", tests: worker("routes/pause") },
  { path: "src/vms/(waits|tiers)", tests: worker("vms/", "routes/public") },
  { path: "src/[^/]+$", tests: worker("[^/]+.test.ts", "routes/(public|bad-input)") },
  { path: "src/outbound", tests: [...worker("provisioner/(banner|create|wallet)"), ...e2e("sim")] },
  { path: "src/(app|errors)", tests: worker("db/client", "routes/database-down") },
  { path: "durable-objects/ip-guard", tests: [...worker("access/"), ...e2e("(restart|flood)")] },
  { path: "durable-objects/log-book", tests: [...worker("log.test.ts"), ...e2e("operators")] },
  { path: "durable-objects/vendor-gate", tests: worker("provisioner/(failover|reap|create|vendor-answers)") },
  { path: "durable-objects/(operator-wallet|wallet-)", tests: worker("provisioner/(wallet|order|refund)") },
  { path: "migrations/", tests: [...worker("db/"), ...e2e("d1-stand-in", "migrations")] },
  { path: "test/world/migrations", tests: e2e("d1-stand-in", "migrations") },
  { path: "(src/provisioner/)?wrangler.toml", tests: e2e("deploy", "upload") },
  { path: "test/worker/[^/]+$", tests: worker("chain/", "vms/") },
  ...["access", "chain", "routes/x402", "routes/admin"].map((area) => ({
    path: `test/worker/${area}/`,
    tests: worker(`${area}/`),
  })),
  {
    path: "test/world/(start|show|guide|narrator|signs-of-life|dev|kept|log-lines|world|http|agent)",
    tests: e2e("start"),
  },
  { path: "test/world/(http|server)", tests: e2e("connections") },
  { path: "test/world/(facilitator|payer)", tests: e2e("facilitator", "x402") },
  {
    path: "test/world/(bare-workers|build-cache|wrangler-reads|shop)",
    tests: e2e("restart", "import", "flood", "upload"),
  },
  {
    path: "test/world/(vultr|runpod|vendor-server|ssh-)",
    tests: [...worker("provisioner/(vendors/|hard-vendors)"), ...e2e("main-job")],
  },
  {
    path: "test/world/bad-day",
    tests: [...worker("db/client", "(routes|provisioner)/database-down")],
  },
  { path: "test/world/(vendor-words|pod-log)", tests: worker("provisioner/(vendors/words|vendor-answers)") },
  { path: "test/world/vendor-words", tests: e2e("sim") },
  { path: "test/world/pod-arguments", tests: [...e2e("pod-arguments"), ...worker("provisioner/create")] },
  { path: "test/world/(disk|shell|sftp|ssh-)", tests: e2e("ssh-door") },
  { path: "test/world/silent-port", tests: worker("provisioner/(banner|hard-vendors)") },
  { path: "test/worker/paged", tests: worker("vms/standing") },
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
  { path: "test/[^/]+$", tests: e2e("test-run") },
  { path: "vitest.config", tests: e2e("test-run") },
  { path: "[^/]+$", tests: e2e("repository", "deploy") },
  { path: "src/README", tests: e2e("repository") },
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

// `npm run deploy`: checks what both Workers would run with, then deploys them with wrangler, the edge first. Arguments
// go to wrangler: `npm run deploy -- --dry-run` builds both and uploads nothing.
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { readEnvironment, WORKERS } from "./environment.ts";
import { deploymentProblems } from "./settings.ts";
import { WRANGLER } from "./wrangler.ts";

const args = process.argv.slice(2);
const dryRun = args.includes("--dry-run");
const environments = { edge: readEnvironment("edge"), provisioner: readEnvironment("provisioner") };
const problems = deploymentProblems(environments);
for (const problem of problems) console.error(`! ${problem}`);
if (problems.length > 0 && !dryRun) {
  console.error('Nothing was deployed. src/admin/README.md, "Environment", says what each setting is.');
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

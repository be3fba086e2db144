// `npm run admin -- …`: what operators do from a checkout.
import { program } from "commander";
import { type ImportOptions, importOldBackend } from "./import.ts";

program.name("npm run admin --").description("Operators' commands.");
program
  .command("import")
  .description("Takes over VMs and wallets of the old backend, before the first scan. Without a target it only checks.")
  .argument("<file>", 'JSON: {"vms": […], "agent_wallets": […]}, rows as the old tables have them')
  .option("--remote", "write to the deployed database")
  .option("--local", "write to wrangler's local database")
  .option("--persist-to <folder>", "where the local database is")
  .action(async (file: string, options: ImportOptions) => importOldBackend(file, options));

try {
  await program.parseAsync();
} catch (error) {
  program.error(error instanceof Error ? error.message : String(error));
}

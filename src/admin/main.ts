// `npm run admin -- …`: what operators do from a checkout.
import { program } from "commander";
import { addApiCommands } from "./commands.ts";
import type { ImportOptions } from "./import.ts";

program
  .name("npm run admin --")
  .description("Operators' commands: tables on a terminal, JSON in a pipe.")
  .addHelpText("after", "\nIn a pipe: npm run --silent admin -- … (npm prints two lines of its own otherwise).");
addApiCommands(program);
program
  .command("import")
  .description("Takes over VMs and wallets of the old backend, before the first scan. Without a target it only checks.")
  .argument("<file>", 'JSON: {"vms": […], "agent_wallets": […]}, rows as the old tables have them')
  .option("--remote", "write to the deployed database")
  .option("--local", "write to wrangler's local database")
  .option("--persist-to <folder>", "where the local database is")
  .action(async (file: string, options: ImportOptions) => {
    // It brings wrangler along: seconds that no other command has to wait.
    const { importOldBackend } = await import("./import.ts");
    await importOldBackend(file, options);
  });

try {
  await program.parseAsync();
} catch (error) {
  program.error(error instanceof Error ? error.message : String(error));
}

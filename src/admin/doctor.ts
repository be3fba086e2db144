// `npm run doctor`: asks the accounts that this checkout's settings name, changes nothing, and says what is left to do.
import { styleText } from "node:util";
import { Argument, program } from "commander";
import { setLogLevel } from "../log.ts";
import { examine, type Report } from "./doctor/examine.ts";
import { PARTS, type PartName } from "./doctor/finding.ts";

const MARKS = { ok: "ok", note: "note", todo: "TO DO" } as const;
const COLORS = { ok: "green", note: "yellow", todo: "red" } as const;

program
  .name("npm run doctor --")
  .description("Asks the real accounts of this checkout's settings whether a deployment would work. Reads only.")
  .addArgument(new Argument("[parts...]", "all of them without an argument").choices(PARTS))
  .option("--folder <path>", "the checkout whose settings are read", ".")
  .option("--json", "one JSON document instead of the table")
  .addHelpText("after", "\nExits 0 where all is well, 1 where something is to be done.")
  .action(async (named: PartName[], { json, folder }: { json?: true; folder: string }) => {
    // What the product would log of each answer is told by the table.
    setLogLevel("error");
    const report = await examine(named.length === 0 ? PARTS : named, folder);
    if (json) console.log(JSON.stringify(report, null, 2));
    else print(report);
    process.exitCode = report.well ? 0 : 1;
  });
await program.parseAsync();

function print({ findings, todo }: Report): void {
  const width = (of: (finding: Report["findings"][number]) => string) =>
    Math.max(...findings.map((finding) => of(finding).length));
  const [part, what] = [width((one) => one.part), width((one) => one.what)];
  for (const finding of findings) {
    const mark = styleText(COLORS[finding.state], MARKS[finding.state].padEnd(5), { stream: process.stdout });
    console.log(`${mark}  ${finding.part.padEnd(part)}  ${finding.what.padEnd(what)}  ${finding.answer}`);
  }
  console.log(todo.length === 0 ? "\nAll is well." : "\nTo do:");
  for (const [i, sentence] of todo.entries()) console.log(`${String(i + 1).padStart(3)}. ${sentence}`);
}

// `npm run smoke`: buys one machine with real money, logs in, ends it, and says what each phase took and what it cost. It pays
// the contract, as agents without x402 do: every deployment sells that way, from one wallet, with nothing between the payment
// and the machine but the product.
import { createInterface } from "node:readline/promises";
import { program } from "commander";
import { setLogLevel } from "../log.ts";
import { DEFAULT_URL } from "./commands.ts";
import { hideSecrets } from "./doctor/finding.ts";
import { sentenceOf } from "./doctor/reason.ts";
import { readSettings } from "./settings.ts";
import { KEY_VARIABLE } from "./smoke/buyer.ts";
import { type Options, type Prepared, prepare, secretsOf } from "./smoke/prepare.ts";
import { describe, exitCodeOf, NOTHING_BOUGHT, tell } from "./smoke/report.ts";
import { makeTrip, nothingYet } from "./smoke/run.ts";

/** npm passes Ctrl-C on to a process that its terminal has told already: what comes within this is one press. */
const ONE_PRESS_MS = 1_000;

async function run(options: Options & { yes?: true; folder: string }): Promise<void> {
  setLogLevel("error");
  let trip: Prepared;
  let secrets: readonly string[] = [];
  try {
    const settings = readSettings(options.folder);
    secrets = secretsOf(settings);
    trip = await prepare(settings, options);
    if (!(await isAllowed(trip, options.yes))) return stop(NOTHING_BOUGHT, "Nothing was bought.");
  } catch (error) {
    const why = sentenceOf(error).replace(/\.*$/, ".");
    return stop(NOTHING_BOUGHT, hideSecrets(`Nothing was bought: ${why}`, secrets));
  }
  const outcome = nothingYet();
  const interrupt = new AbortController();
  let interruptedAt = 0;
  const onSignal = (): void => {
    if (interruptedAt === 0) {
      interruptedAt = Date.now();
      console.error("Interrupted: the machine is ended first. Once more leaves that to you.");
      interrupt.abort(new Error("it was interrupted"));
    } else if (Date.now() - interruptedAt > ONE_PRESS_MS) {
      const left = { ...outcome, failure: "it was interrupted twice", isGone: outcome.isGone ?? false };
      for (const line of tell(left, trip)) console.error(line);
      process.exit(exitCodeOf(left));
    }
  };
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, onSignal);
  const onPhase = (name: string, seconds: number, more: string) =>
    console.log(`${name.padEnd(12)} ${seconds.toFixed(1).padStart(7)} s  ${more}`.trimEnd());
  await makeTrip({ ...trip, interrupted: interrupt.signal, onPhase }, outcome);
  for (const line of tell(outcome, trip)) console.log(line);
  process.exitCode = exitCodeOf(outcome);
}

function stop(code: number, text: string): void {
  console.error(text);
  process.exitCode = code;
}

async function isAllowed(trip: Prepared, yes = false): Promise<boolean> {
  console.log(describe(trip));
  if (yes) return true;
  if (!process.stdin.isTTY) throw new Error("Answer on a terminal, or give --yes.");
  const lines = createInterface({ input: process.stdin, output: process.stdout });
  // Ctrl-D ends the input, and the question would wait for ever; Ctrl-C does too, and then rejects it.
  const closed = new Promise<string>((resolve) => lines.once("close", () => setImmediate(resolve, "")));
  const answer = await Promise.race([lines.question("Buy it? [y/N] "), closed]);
  lines.close();
  return /^y(es)?$/i.test(answer.trim());
}

program
  .name("npm run smoke --")
  .description("Buys one machine for a day with real money, logs in, ends it, and says what it took and cost.")
  .option("--tier <number>", "0 to 7", "0")
  .option("--url <url>", "base URL of the API", process.env["CLAWCLOUD_URL"] ?? DEFAULT_URL)
  .option("--folder <path>", "the checkout whose settings are read", ".")
  .option("--minutes <number>", "how long the machine may take", "20")
  .option("--yes", "buy without asking, for scripts")
  .addHelpText(
    "after",
    `\n${KEY_VARIABLE} is the key of the wallet that pays, CLAWCLOUD_ADMIN_KEY an operator's key that ends the machine.
Exits 0 where all went well, 1 where nothing was bought, 2 where something was and not all went well.`,
  )
  .action(run);
await program.parseAsync();

// `npm run bench`: prints figures and judges none. test/README.md, "Figures", describes the method.
import { InvalidArgumentError, program } from "commander";
import { benchCatchUp } from "./catch-up.ts";
import { benchCosts, benchOrderCosts } from "./costs.ts";
import { benchGuard } from "./guard.ts";
import { benchHistory } from "./history.ts";
import { benchOverhead } from "./overhead.ts";
import { type Part, runParts } from "./parts.ts";
import { benchPayments } from "./payments.ts";
import { benchRoutes } from "./routes.ts";
import { benchScale } from "./scale.ts";
import { benchStartup } from "./startup.ts";

type Options = { purchases: number; gpus: number };

const PARTS: Record<string, { title: string; run: (options: Options) => Promise<void> }> = {
  routes: { title: "Routes against their floor, 16 connections, median of 5 rounds", run: () => benchRoutes(5) },
  guard: {
    title: "What the guard costs, a banned client and limited ones, median of 5 rounds",
    run: () => benchGuard(5),
  },
  "catch-up": {
    title: "Scan from nothing, consumer off, for each plan of a node, median of 3 rounds",
    run: () => benchCatchUp(10_000, 3),
  },
  overhead: {
    title: "Our own time from block to running",
    run: ({ purchases, gpus }) => benchOverhead(purchases, gpus),
  },
  scale: { title: "Bursts of purchases, all served by a fast vendor", run: () => benchScale([100, 1_000, 10_000]) },
  history: { title: "100,000 purchases of history, median of 9 rounds", run: () => benchHistory(100_000, 9) },
  payments: { title: "x402: quotes and payments, median of 5 rounds", run: () => benchPayments(5, 100) },
  costs: {
    title: "What an order and a request cost",
    run: async () => {
      await benchOrderCosts();
      console.log();
      await benchCosts();
    },
  },
  startup: { title: "Bundles and start-up, median of 5 rounds", run: () => benchStartup(5) },
};

program
  .name("npm run bench --")
  .description("Prints the figures of one part, or of all of them one after the other (about 20 minutes).")
  .argument("[parts...]", `any of ${Object.keys(PARTS).join(", ")}`)
  .option("--purchases <number>", "of the overhead part: how many machines each load buys", count, 50)
  .option("--gpus <number>", "of the overhead part: how many GPUs", count, 10)
  .action(async (names: string[], options: Options) => {
    const unknown = names.find((name) => PARTS[name] === undefined);
    if (unknown !== undefined) program.error(`there is no part "${unknown}"; ${Object.keys(PARTS).join(", ")}`);
    const wanted = Object.entries(PARTS).filter(([name]) => names.length === 0 || names.includes(name));
    process.exitCode = await runParts(wanted.map(([, { title, run }]): Part => ({ title, run: () => run(options) })));
  });
await program.parseAsync();
// What a local runtime leaves open must not keep the process.
process.exit();

function count(text: string): number {
  if (!/^[1-9]\d*$/.test(text)) throw new InvalidArgumentError("It has to be a whole number from 1 on.");
  return Number(text);
}

// Both Workers in workerd, in a process of their own that may be killed at any moment: what they have stored is on disk,
// what waits in the local queue is in memory and dies with it. Started by workers.ts with the folder of a run.
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { type BuiltWorkers, runWorkers } from "../world/bare-workers.ts";

const SCHEDULE_PAUSE_MS = 200;

const [folder = "", outageSeconds = "0"] = process.argv.slice(2);
const built = JSON.parse(await readFile(join(folder, "workers.json"), "utf8")) as BuiltWorkers;
const print = ({ message }: { message: string }) => process.stdout.write(`${message}\n`);
const running = await runWorkers(built, print, join(folder, "state"));
await passTime(Number(outageSeconds) * 1_000);

// The parent holds the other end: when that closes nobody needs these Workers any more.
process.stdin.resume().on("end", () => {
  void running.stop().then(() => process.exit(0));
});

// Local crons never fire by themselves.
const edge = await running.miniflare.getWorker("edge");
process.stdout.write("ready\n");
for (;;) {
  await edge.scheduled({ cron: "* * * * *" }).catch((error: unknown) => console.error("the cron failed:", error));
  await new Promise((resolve) => setTimeout(resolve, SCHEDULE_PAUSE_MS));
}

/** As if the Workers had been down for longer: leases that the dead ones hold run out, rows are due to be sent again. */
async function passTime(ms: number): Promise<void> {
  const { database } = running;
  const statements = [
    "UPDATE vms SET lease_until = lease_until - ?1, wake_at = wake_at - ?1",
    "UPDATE refunds SET wake_at = wake_at - ?1",
    "UPDATE cursors SET lease_until = lease_until - ?1, swept_at = swept_at - ?1",
  ];
  await database.batch(statements.map((statement) => database.prepare(statement).bind(ms)));
}

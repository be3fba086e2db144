// What a Worker weighs and how long its global scope runs, as wrangler reports both; beside a Worker that is empty.
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { wrangler } from "../world/bare-workers.ts";
import { BUDGETS_KIB } from "./budgets.ts";
import { median, missing, table } from "./figures.ts";

const WORKERS = {
  edge: "wrangler.toml",
  provisioner: "src/provisioner/wrangler.toml",
  "hono alone": "test/bench/empty.toml",
};

/** Prints the bundle as uploaded, gzipped, and the CPU time of start-up: median, least and most of the rounds. */
export async function benchStartup(rounds: number): Promise<void> {
  const scratch = await mkdtemp(join(tmpdir(), "clawcloud-startup-"));
  try {
    const active: Record<string, number[]> = {};
    const size: Record<string, string[]> = {};
    const bundle = (name: string) => join(scratch, `${name}.bundle`);
    for (const [name, config] of Object.entries(WORKERS)) {
      await wrangler(["deploy", "--dry-run", "-c", config, "--outfile", bundle(name)]);
    }
    const failures: unknown[] = [];
    for (let round = 0; round < rounds; round++) {
      for (const name of Object.keys(WORKERS)) {
        try {
          const outfile = join(scratch, "startup.cpuprofile");
          const text = await wrangler(["check", "startup", "--worker", bundle(name), "--outfile", outfile]);
          const [, total = "", gzip = ""] = /Bundle: ([\d.]+) KiB \/ gzip: ([\d.]+) KiB/.exec(text) ?? [];
          const [, ms] = /Active: ([\d.]+) ms/.exec(text) ?? [];
          if (ms === undefined) throw new Error(`wrangler reports no start-up time: ${text}`);
          size[name] = [total, gzip];
          active[name] = [...(active[name] ?? []), Number(ms)];
        } catch (error) {
          failures.push(error);
        }
      }
    }
    const rows = Object.entries(active).map(([name, values]) => [
      name,
      ...(size[name] ?? []),
      BUDGETS_KIB[name] ?? "-",
      median(values).toFixed(0),
      `${Math.min(...values).toFixed(0)}-${Math.max(...values).toFixed(0)}`,
    ]);
    if (rows.length > 0)
      console.log(table(["worker", "KiB", "gzip KiB", "budget", "start-up ms of CPU", "min-max"], rows));
    const looks = rounds * Object.keys(WORKERS).length;
    for (const line of missing(failures.length, looks, "looks failed; the first:")) console.log(line, failures[0]);
    if (rows.length < Object.keys(WORKERS).length) throw new AggregateError(failures, "not every Worker was measured");
  } finally {
    await rm(scratch, { recursive: true });
  }
}

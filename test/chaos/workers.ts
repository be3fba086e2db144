// The Workers of a run as the parent sees them: started, killed without a word, started again on what is on disk.
import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, openSync, readFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { buildWorkers } from "../world/bare-workers.ts";
import { freePort } from "../world/ports.ts";
import { bothWorkers, type Parts, workerVariables } from "../world/world.ts";

const PROGRAM = fileURLToPath(new URL("workers-process.ts", import.meta.url).href);
const START_TIMEOUT_MS = 180_000;
/** Where a run's own requests say they come from: their limits are lifted. */
export const CLIENT = "127.0.0.1";

const EDGE = {
  UNLIMITED_CLIENTS: CLIENT,
  SCAN_INTERVAL_MS: "1000",
  SCAN_RUN_SECONDS: "20",
  // A node that hangs is given up soon.
  RPC_TIMEOUT_MS: "2000",
  PROVISION_DEADLINE_SECONDS: "240",
};
const PROVISIONER = {
  RPC_TIMEOUT_MS: "2000",
  SSH_KEY_ALGORITHM: "ed25519",
  RUNPOD_REQUESTS_PER_MINUTE: "600",
  REFUND_LIMIT_USDC_PER_DAY: "100000",
  VENDOR_TIMEOUT_MS: "4000",
  LISTING_LAG_MS: "4000",
  ORPHAN_GRACE_SECONDS: "30",
};

export type Workers = Awaited<ReturnType<typeof prepareWorkers>>;

/**
 * Builds them once; `folder` keeps their state and their log. After a kill they find everything as if they had been down
 * for `outageSeconds` more than they were.
 */
export async function prepareWorkers(parts: Parts, folder: string, outageSeconds: number) {
  // One address through all kills.
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const variables = workerVariables(parts, url);
  const built = await buildWorkers(
    bothWorkers({
      edge: { ...variables.edge, ...EDGE },
      provisioner: { ...variables.provisioner, ...PROVISIONER },
    }),
  );
  const workers = built.workers.map((worker) => (worker.name === "edge" ? { ...worker, port } : worker));
  await writeFile(join(folder, "workers.json"), JSON.stringify({ ...built, workers }));
  const logFile = join(folder, "workers.log");
  let child: ChildProcess | undefined;

  async function start(): Promise<void> {
    const logFd = openSync(logFile, "a");
    // A group of its own: the kill takes workerd with it.
    const started = spawn(process.execPath, [PROGRAM, folder, String(outageSeconds)], {
      stdio: ["pipe", logFd, logFd],
      detached: true,
    });
    closeSync(logFd);
    child = started;
    const until = Date.now() + START_TIMEOUT_MS;
    while (!(await answers())) {
      if (started.exitCode !== null) throw new Error(`the Workers ended with code ${started.exitCode}`);
      if (Date.now() > until) throw new Error("the Workers did not start");
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }

  const answers = () =>
    fetch(`${url}/tiers`, { headers: { "cf-connecting-ip": CLIENT }, signal: AbortSignal.timeout(2_000) }).then(
      (answer) => answer.body?.cancel().then(() => true) ?? true,
      () => false,
    );

  return {
    /** Of the edge. */
    url,
    start,
    kill: async () => {
      const killed = child;
      child = undefined;
      if (killed?.pid === undefined || killed.exitCode !== null) return;
      const gone = new Promise((resolve) => killed.once("exit", resolve));
      process.kill(-killed.pid, "SIGKILL");
      await gone;
    },
    /** Lines of the log that hold one of these texts. */
    readLog: (...texts: string[]): string[] =>
      readFileSync(logFile, "utf8")
        .split("\n")
        .filter((line) => texts.some((text) => line.includes(text))),
  };
}

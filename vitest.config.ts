import { mkdtempSync, readFileSync, rmSync, statfsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { cloudflareTest } from "@cloudflare/vitest-plugin";
import { defineConfig } from "vitest/config";

import { SlowFirst } from "./test/order.ts";
import { AreaReporter } from "./test/report.ts";
import { bookVariables, gateVariables, startPartsProcess } from "./test/worker/parts.ts";
import { readMigrations } from "./test/world/migrations.ts";

// The programs that tests start, some dozen of them, are compiled once.
process.env["NODE_COMPILE_CACHE"] ??= fileURLToPath(new URL("node_modules/.cache/node", import.meta.url).href);

// Each statement that writes waits for the disk: databases of tests are in memory where it has room for them.
const MEMORY = "/dev/shm";
const ROOM_BYTES = 2 ** 31;
if (process.env["TMPDIR"] === undefined && roomIn(MEMORY) > ROOM_BYTES) {
  const folder = mkdtempSync(`${MEMORY}/clawcloud-test-`);
  process.env["TMPDIR"] = folder;
  process.once("exit", () => rmSync(folder, { recursive: true, force: true }));
}

/** Bytes; none where programs don't run, since tests write some. */
function roomIn(folder: string): number {
  try {
    const mounts = readFileSync("/proc/mounts", "utf8").split("\n");
    if (mounts.some((line) => line.split(" ")[1] === folder && /\bnoexec\b/.test(line))) return 0;
    const { bavail, bsize } = statfsSync(folder);
    return bavail * bsize;
  } catch {
    return 0;
  }
}

const migrations = readMigrations();

// A run names what passed at the second try only: see test/report.ts.
const retry = process.env["CI"] === undefined ? 0 : 1;

export default defineConfig({
  test: {
    // Files wait for blocks, boots and polls more than they compute: four of them keep two cores busy.
    maxWorkers: 4,
    silent: "passed-only",
    reporters: [new AreaReporter()],
    sequence: { sequencer: SlowFirst },
    slowTestThreshold: 10_000,
    // workerd has no coverage of its own: the source is instrumented. What runs in Node alone is left out.
    coverage: {
      provider: "istanbul",
      include: ["src/**/*.ts", "durable-objects/**/*.ts"],
      exclude: ["src/admin/**"],
      reporter: ["text"],
      reportsDirectory: "node_modules/.cache/coverage",
      reportOnFailure: true,
    },
    projects: [
      {
        plugins: [
          // Called for each workerd: each has a chain, vendors and a database of its own.
          cloudflareTest(async () => {
            const parts = await startPartsProcess();
            return {
              main: "./test/worker/main.ts",
              // Without the runtime's own chatter about connections that tests break on purpose.
              verbose: false,
              miniflare: {
                compatibilityDate: "2026-10-01",
                d1Databases: ["DB"],
                queueProducers: { JOBS: "jobs" },
                durableObjects: {
                  IP_GUARD: { className: "IpGuard", useSQLite: true },
                  LOG_BOOK: { className: "LogBook", useSQLite: true },
                  OPERATOR_WALLET: { className: "OperatorWallet", useSQLite: true },
                  VENDOR_GATE: { className: "VendorGate", useSQLite: true },
                },
                // What the vendors' gate, an object, runs with; the handlers get theirs from the tests.
                bindings: { MIGRATIONS: migrations, PARTS: parts, ...gateVariables(parts), ...bookVariables(parts) },
                modulesRules: [{ type: "Text", include: ["**/swagger-ui-bundle.js", "**/swagger-ui.css", "**/*.txt"] }],
              },
            };
          }),
        ],
        test: {
          name: "worker",
          include: ["test/worker/**/*.test.ts"],
          setupFiles: ["test/worker/source-maps.ts"],
          isolate: false,
          retry,
          // The longest takes twenty seconds on quiet cores: a busy machine is no failure.
          testTimeout: 180_000,
          hookTimeout: 180_000,
          deps: {
            optimizer: {
              ssr: {
                enabled: true,
                include: [
                  "viem",
                  "viem/accounts",
                  "hono",
                  "hono/route",
                  "hono/http-exception",
                  "@hono/zod-openapi",
                  "zod",
                  "drizzle-orm",
                  "drizzle-orm/d1",
                  "drizzle-orm/sqlite-core",
                  "eciesjs",
                  "micro-key-producer/ssh.js",
                ],
              },
            },
          },
        },
      },
      {
        test: {
          name: "e2e",
          include: ["test/e2e/**/*.test.ts", "test/world/**/*.test.ts"],
          // Files share nothing but what they import, which takes seconds for each.
          isolate: false,
          retry,
          testTimeout: 300_000,
          hookTimeout: 120_000,
        },
      },
      {
        test: {
          name: "long",
          include: ["test/long/**/*.test.ts"],
          testTimeout: 3_600_000,
          hookTimeout: 120_000,
        },
      },
    ],
  },
});

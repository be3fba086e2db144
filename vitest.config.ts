import { cloudflareTest, readD1Migrations } from "@cloudflare/vitest-plugin";
import { defineConfig } from "vitest/config";

import { bookVariables, gateVariables } from "./test/worker/parts.ts";

const migrations = await readD1Migrations("migrations");

export default defineConfig({
  test: {
    // Tests share one chain and two vendors, and the machine has few cores: one file after the other.
    fileParallelism: false,
    silent: "passed-only",
    projects: [
      {
        plugins: [
          cloudflareTest(({ inject }) => {
            const parts = inject("parts");
            return {
              main: "./test/worker/main.ts",
              miniflare: {
                compatibilityDate: "2026-10-01",
                compatibilityFlags: ["nodejs_compat"],
                d1Databases: ["DB"],
                queueProducers: { JOBS: "jobs" },
                durableObjects: {
                  IP_GUARD: { className: "IpGuard", useSQLite: true },
                  LOG_BOOK: { className: "LogBook", useSQLite: true },
                  OPERATOR_WALLET: { className: "OperatorWallet", useSQLite: true },
                  VENDOR_GATE: { className: "VendorGate", useSQLite: true },
                },
                // What the vendors' gate, an object, runs with; the handlers get theirs from the tests.
                bindings: { MIGRATIONS: migrations, ...gateVariables(parts), ...bookVariables(parts) },
                modulesRules: [{ type: "Text", include: ["**/swagger-ui-bundle.js", "**/swagger-ui.css", "**/*.txt"] }],
              },
            };
          }),
        ],
        test: {
          name: "worker",
          include: ["test/worker/**/*.test.ts"],
          globalSetup: ["test/worker/parts.ts"],
          isolate: false,
          testTimeout: 30_000,
          hookTimeout: 30_000,
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
          testTimeout: 180_000,
          hookTimeout: 120_000,
        },
      },
    ],
  },
});

// The migrations as an operator applies them, with wrangler; elsewhere tests run their statements themselves.
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { expect, test } from "vitest";
import { createDatabase } from "../sim/d1.ts";
import { wrangler } from "../world/bare-workers.ts";

const schemaOf = (database: DatabaseSync) =>
  database
    .prepare(
      "SELECT type, name, sql FROM sqlite_master WHERE name NOT GLOB 'sqlite_*' AND name NOT GLOB '_cf_*' ORDER BY name",
    )
    .all()
    .filter(({ name }) => name !== "d1_migrations")
    .map((row) => ({ ...row }));

test("wrangler d1 migrations apply leaves the schema that all other tests have", { timeout: 180_000 }, async () => {
  const folder = await mkdtemp(join(tmpdir(), "clawcloud-test-"));
  try {
    const where = ["--local", "--persist-to", folder];
    await wrangler(["d1", "migrations", "apply", "clawcloud", ...where]);
    expect(await wrangler(["d1", "migrations", "apply", "clawcloud", ...where])).toContain("No migrations to apply");
    const place = join(folder, "v3/d1/miniflare-D1DatabaseObject");
    const [file = ""] = (await readdir(place)).filter((name) => /^[0-9a-f]+\.sqlite$/.test(name));
    const applied = new DatabaseSync(join(place, file));
    const expected = createDatabase();
    expect(schemaOf(expected).length).toBeGreaterThan(20);
    expect(schemaOf(applied)).toEqual(schemaOf(expected));
    applied.close();
    expected.close();
  } finally {
    await rm(folder, { recursive: true });
  }
});

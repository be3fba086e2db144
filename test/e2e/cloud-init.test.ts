// A machine's user data, held against cloud-init itself (Debian's package): its schema, and how it merges what Vultr adds.
import { execFile, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { expect, type TestContext, test } from "vitest";
import { generateHostKey } from "../../src/credentials/ssh-keys.ts";
import { cloudConfig, SPENT_CLOUD_CONFIG } from "../../src/provisioner/cloud-init.ts";

const run = promisify(execFile);
const spec = {
  label: "clawcloud-production-7-abcdef01-0-1",
  mark: "c0ffee",
  region: "ewr",
  plan: "vc2-1c-1gb",
  publicKey: `ssh-ed25519 ${"A".repeat(68)}`,
  hostKey: generateHostKey(),
};
const USER_DATA = { "of a new machine": cloudConfig(spec, 22), "of one that has booted": SPENT_CLOUD_CONFIG };
/** What Vultr's vendor data asks for, by cloud-init's own test of that source. */
const VENDOR_DATA = { package_upgrade: true, disable_root: 0, ssh_pwauth: 1 };

function requireCloudInit({ skip }: TestContext): void {
  if (spawnSync("cloud-init", ["--version"]).status === 0) return;
  console.warn(
    "SKIPPED: cloud-init is not installed, so that nothing holds user data against it (apt install cloud-init)",
  );
  skip("cloud-init is not installed");
}

test.for(Object.entries(USER_DATA))(
  "the user data %s is valid: an empty list of key types left every machine degraded (hard case 50)",
  async ([, text], context) => {
    requireCloudInit(context);
    const folder = mkdtempSync(join(tmpdir(), "clawcloud-cloud-init-"));
    try {
      const file = join(folder, "user-data");
      writeFileSync(file, text);
      const { stdout } = await run("cloud-init", ["schema", "--config-file", file]);
      expect(stdout).toMatch(/^Valid /);
    } finally {
      rmSync(folder, { recursive: true });
    }
  },
);

test("no package is waited for before the mark, whatever Vultr asks for (hard case 50)", async (context) => {
  requireCloudInit(context);
  const merge =
    "import json, sys; from cloudinit import util; print(json.dumps(util.mergemanydict(json.loads(sys.argv[1]))))";
  const own = JSON.parse(cloudConfig(spec, 22).replace("#cloud-config", "")) as object;
  const { stdout } = await run("/usr/bin/python3", ["-c", merge, JSON.stringify([own, VENDOR_DATA])]);
  expect(JSON.parse(stdout)).toMatchObject({
    package_update: false,
    package_upgrade: false,
    disable_root: false,
    ssh_pwauth: false,
  });
});

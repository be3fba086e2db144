// A machine's user data, held against cloud-init itself (Debian's package): its schema, and how it merges what Vultr adds.
import { execFile, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { expect, type TestContext, test } from "vitest";
import { generateHostKey } from "../../src/credentials/ssh-keys.ts";
import { cloudConfig, podEnvironment, SPENT_CLOUD_CONFIG } from "../../src/provisioner/machines/cloud-init.ts";
import { machineNote } from "../../src/provisioner/machines/machine-note.ts";

const run = promisify(execFile);
const spec = {
  label: "clawcloud-production-7-abcdef01-0-1",
  mark: "c0ffee",
  region: "ewr",
  plan: "vc2-1c-1gb",
  publicKey: `ssh-ed25519 ${"A".repeat(68)}`,
  hostKey: generateHostKey(),
  ports: [80, 443],
  note: "# A machine\n",
};
const NOTE_SETTINGS = {
  PUBLIC_URLS: [`https://${"a".repeat(60)}.example.com`],
  CONTRACT_ADDRESS: "0xF708741D37C420518852c6A15aB658066951c852" as const,
  CHAIN_ID: 8453,
  VULTR_OS: "Ubuntu 24.04 LTS x64",
  VULTR_SSH_PORT: 22,
  RUNPOD_IMAGE: "runpod/pytorch:2.1.0-py3.10-cuda11.8.0-devel-ubuntu22.04",
};
const TOKEN = { tokenId: 42, tier: 4, expiresAt: 1_800_000_000 };
/** As large as they come. */
const LARGEST = {
  ...spec,
  publicKey: `ssh-rsa ${"A".repeat(2_800)}`,
  ports: [10_001, 10_002, 10_003, 10_004, 10_005, 10_006, 10_007, 10_008],
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

test("user data and a pod's variables stay small: no vendor names its limit, and the narrowest known is 16 KB", () => {
  const note = (vendor: "vultr" | "runpod") => machineNote(NOTE_SETTINGS, TOKEN, vendor, LARGEST.ports);
  expect(cloudConfig({ ...LARGEST, note: note("vultr") }, 22).length).toBeLessThan(12_000);
  for (const value of Object.values(podEnvironment({ ...LARGEST, note: note("runpod") })))
    expect(value.length).toBeLessThan(4_000);
});

test("a machine's note names its token, its end, its ports and where the truth is, and no secret", () => {
  const alone = machineNote(NOTE_SETTINGS, TOKEN, "vultr", []);
  const [api] = NOTE_SETTINGS.PUBLIC_URLS;
  for (const part of [
    "# ClawCloud token 42, tier 4",
    "Ends: 2027-01-15T08:00:00.000Z, unless renewed since",
    "TCP 22 (SSH) alone.",
    `GET ${api}/status/42`,
    `POST ${api}/credentials/42/rotate`,
  ])
    expect(alone).toContain(part);
  expect(machineNote(NOTE_SETTINGS, TOKEN, "vultr", [80, 443])).toContain("TCP 22, 80, 443.");
  const pod = podEnvironment({ ...spec, note: machineNote(NOTE_SETTINGS, TOKEN, "runpod", [8888]) });
  const read = Buffer.from(pod["CLAWCLOUD_NOTE"] ?? "", "base64").toString();
  expect(read).toContain("TCP 22, 8888. RunPod maps each to another public port");
  for (const secret of [spec.mark, spec.hostKey.privateKey, pod["CLAWCLOUD_HOST_KEY"] ?? ""])
    expect(read).not.toContain(secret);
});

// A machine's first boot, for real: cloud-init and sshd (Debian's packages) run the user data in a copy of this machine's own
// root file system that is thrown away, without its network, its devices, its users or its /etc/ssh.
import { execFile, spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { expect, type TestContext, test } from "vitest";
import { formatPrivateKey, generateHostKey, generateSshKeyPair } from "../../src/credentials/ssh-keys.ts";
import { cloudConfig } from "../../src/provisioner/machines/cloud-init.ts";
import { machineNote } from "../../src/provisioner/machines/machine-note.ts";

const run = promisify(execFile);
const SCRIPT = "test/e2e/machine-boot.sh";
const NAMESPACES = ["--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "--kill-child"];
const BOOT_MS = 240_000;
const MARK = "c0ffee0123456789";
const PORTS = [80, 443];
/** What Vultr's vendor data asks for, by cloud-init's own test of that source. */
const VENDOR_DATA = "#cloud-config\npackage_upgrade: true\ndisable_root: 0\nssh_pwauth: 1\n";
const NOTE = machineNote(
  {
    PUBLIC_URLS: ["https://api.example"],
    CONTRACT_ADDRESS: "0xF708741D37C420518852c6A15aB658066951c852",
    CHAIN_ID: 8453,
    VULTR_OS: "Ubuntu 24.04 LTS x64",
    VULTR_SSH_PORT: 22,
    RUNPOD_IMAGE: "",
  },
  { tokenId: 42, tier: 0, expiresAt: 1_800_000_000 },
  "vultr",
  PORTS,
);

function requireParts({ skip }: TestContext): void {
  const missing = [
    ...(process.getuid?.() === 0 ? [] : ["root rights"]),
    ...(spawnSync("cloud-init", ["--version"]).status === 0 ? [] : ["cloud-init"]),
    ...(existsSync("/usr/sbin/sshd") && existsSync("/usr/share/openssh/sshd_config") ? [] : ["openssh-server"]),
    ...(spawnSync("unshare", [...NAMESPACES, "true"]).status === 0 ? [] : ["namespaces"]),
  ];
  if (missing.length === 0) return;
  const what = missing.join(", ");
  console.warn(
    `SKIPPED: no machine's boot is tried, for want of ${what} (apt install cloud-init openssh-server; run as root)`,
  );
  skip(`missing: ${what}`);
}

/** What the boot told, by name; a name that was told several times has several values. */
async function boot(publicKey: string, privateKey: string, hostKey: ReturnType<typeof generateHostKey>) {
  const folder = mkdtempSync(join(tmpdir(), "clawcloud-boot-"));
  try {
    const place = { label: "clawcloud-production-42-abcdef01-0-1", region: "ewr", plan: "vc2-1c-1gb" };
    const spec = { ...place, mark: MARK, publicKey, hostKey, ports: PORTS, note: NOTE };
    const files = {
      "user-data": cloudConfig(spec, 22),
      "vendor-data": VENDOR_DATA,
      "login-key": privateKey,
      "known-hosts": `127.0.0.1 ${hostKey.publicKey}\n`,
    };
    for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text, { mode: 0o600 });
    const { stdout } = await run("unshare", [...NAMESPACES, SCRIPT, folder], { timeout: BOOT_MS });
    const told = new Map<string, string[]>();
    for (const [, name = "", value = ""] of stdout.matchAll(/^([a-z, ]+): (.*)$/gm))
      told.set(name, [...(told.get(name) ?? []), value]);
    return (name: string): string[] => told.get(name) ?? [];
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

test(
  "the user data of a new machine boots: the login works, the host key is the one that was sent, and the mark comes last and only when all is well",
  async (context) => {
    requireParts(context);
    const [pair, hostKey] = [await generateSshKeyPair("ed25519"), generateHostKey()];
    const told = await boot(pair.publicKey, formatPrivateKey(pair.privateKey), hostKey);
    expect(told("errors").map((text) => (JSON.parse(text) as { v1: { errors: unknown[] } }).v1.errors)).toEqual([[]]);
    expect(told("log")).toEqual([]);

    // Over the host key that was sent, and no other one is there.
    expect(told("login")).toEqual(["root"]);
    expect(told("host keys")).toEqual(["/etc/ssh/ssh_host_ed25519_key "]);
    expect(told("without key")).toEqual([expect.stringContaining("Permission denied (publickey).")]);
    expect(told("note").join("\n")).toBe(NOTE.trimEnd());

    expect(told("banner")).toEqual([expect.stringMatching(new RegExp(`^SSH-2\\.0-OpenSSH_\\S+ .*${MARK}$`))]);
    expect(told("banner before the last stage")).toEqual([expect.not.stringContaining(MARK)]);
    const calls = told("call");
    for (const call of calls) expect(call).not.toContain(MARK);
    const names = calls.map((call) => call.replace(/ <.*/, ""));
    expect(names.filter((name) => name.startsWith("apt-get"))).toEqual([]);
    expect(names.filter((name) => name.startsWith("ufw"))).toEqual([
      "ufw default deny incoming",
      ...[22, ...PORTS].map((port) => `ufw allow ${port}/tcp`),
      "ufw --force enable",
    ]);
    expect(names.at(-1)).toBe("systemctl restart ssh");

    expect(told("again, all well")).toEqual(["marked"]);
    for (const fault of [
      "ufw fails",
      "no login key",
      "another host key",
      "passwords on",
      "sshd refuses its settings",
    ]) {
      expect(told(fault), fault).toEqual(["not marked"]);
    }
  },
  BOOT_MS,
);

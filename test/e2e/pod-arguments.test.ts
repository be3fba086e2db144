// A pod's start arguments on their way into its container: through JSON, through the parser that RunPod splits them with, and
// through bash, beside a start script that does what the image's does (hard case 53).
import { execFileSync, spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { generateHostKey } from "../../src/credentials/ssh-keys.ts";
import { podEnvironment, podStartArguments } from "../../src/provisioner/machines/cloud-init.ts";
import { commandOf, isRefused, scriptOf } from "../world/pod-arguments.ts";

const PUBLIC_KEY = "ssh-ed25519 AAAA buyer";
/** Keeps a host key that it finds, adds PUBLIC_KEY, and tells what a shell of the tenant's would have. */
const IMAGE_START_SCRIPT = `#!/bin/bash
set -e
if [[ $PUBLIC_KEY ]]; then
  mkdir -p ~/.ssh
  echo "$PUBLIC_KEY" >> ~/.ssh/authorized_keys
  if [[ ! -f SSH/ssh_host_ed25519_key ]]; then ssh-keygen -t ed25519 -f SSH/ssh_host_ed25519_key -q -N ''; fi
fi
printenv | grep CLAWCLOUD_HOST_KEY && exit 1
[[ -z $(cat) ]]
umask
`;

test("start arguments are one line that no parser on the way changes (hard case 53)", () => {
  const args = podStartArguments();
  expect(args).not.toMatch(/["'$\\`\n]/);
  expect(args.length).toBeLessThan(4_000);
  expect((JSON.parse(JSON.stringify({ args })) as { args: string }).args).toBe(args);
  expect(() => JSON.parse(args)).toThrow();
  expect(isRefused(args)).toBe(false);
  expect(isRefused(`bash -c 'echo "$PUBLIC_KEY"'`)).toBe(true);
});

test("Python's shlex splits them as the simulator does (hard case 53)", ({ skip }) => {
  const args = podStartArguments();
  const lines = [args, `bash -c 'a b' "c \\"d" e\\ f g`, "a  b"];
  const python = spawnSync("python3", [
    "-c",
    "import json, shlex, sys; print(json.dumps([shlex.split(a) for a in json.loads(sys.argv[1])]))",
    JSON.stringify(lines),
  ]);
  if (python.status !== 0) {
    console.warn("SKIPPED: python3 is not installed, so that nothing holds the simulator's words against shlex");
    skip("python3 is not installed");
  }
  const split = JSON.parse(python.stdout.toString()) as string[][];
  expect(split).toEqual(lines.map(commandOf));
  expect(split[0]?.slice(0, 2)).toEqual(["bash", "-c"]);
  expect(split[0]).toHaveLength(3);
});

test("bash runs them: host key, rules and mark are in place before the image's start script (hard case 53)", () => {
  const root = mkdtempSync(join(tmpdir(), "clawcloud-pod-"));
  try {
    const ssh = join(root, "ssh");
    const hostKey = generateHostKey();
    const spec = {
      label: "l",
      mark: "c0ffee",
      region: "COMMUNITY",
      plan: "p",
      publicKey: PUBLIC_KEY,
      hostKey,
      ports: [],
      note: "# Of this pod\n",
    };
    mkdirSync(ssh);
    // A host key of the image's, which everybody may read.
    writeFileSync(join(ssh, "ssh_host_ed25519_key"), "the image's own", { mode: 0o644 });
    writeFileSync(join(root, "start.sh"), IMAGE_START_SCRIPT.replaceAll("SSH", ssh), { mode: 0o755 });
    // The same words, of a container whose root is a folder.
    const script = (scriptOf(podStartArguments()) ?? "")
      .replaceAll("/etc/ssh", ssh)
      .replaceAll("/root", root)
      .replaceAll("/start.sh", join(root, "start.sh"));
    const [shell = "", ...words] = commandOf(podStartArguments()).map((word) =>
      word.replace(/(?<=<<<)[\w+/=]+/, Buffer.from(script).toString("base64")),
    );
    const env = { PATH: process.env["PATH"], HOME: root, ...podEnvironment(spec) };
    expect(execFileSync(shell, words, { env }).toString()).toBe("0022\n");
    expect(readFileSync(join(ssh, "ssh_host_ed25519_key"), "utf8")).toBe(hostKey.privateKey);
    expect(statSync(join(ssh, "ssh_host_ed25519_key")).mode & 0o777).toBe(0o600);
    expect(readFileSync(join(ssh, "ssh_host_ed25519_key.pub"), "utf8").trim()).toBe(hostKey.publicKey);
    expect(readFileSync(join(root, ".ssh/authorized_keys"), "utf8")).toBe(`${PUBLIC_KEY}\n`);
    expect(readFileSync(join(root, "CLAWCLOUD.md"), "utf8")).toBe("# Of this pod\n");
    const rules = readFileSync(join(ssh, "sshd_config.d/00-clawcloud.conf"), "utf8").trim().split("\n");
    expect(rules).toEqual([
      "PasswordAuthentication no",
      "KbdInteractiveAuthentication no",
      "PermitRootLogin prohibit-password",
      `HostKey ${ssh}/ssh_host_ed25519_key`,
      "VersionAddendum c0ffee",
    ]);
  } finally {
    rmSync(root, { recursive: true, force: true });
  }
});

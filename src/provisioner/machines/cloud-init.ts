// How a machine gets its keys and closes its doors. Cloud-init for Vultr's VMs, environment and start arguments for
// RunPod's containers. The mark goes into sshd's banner last, so a banner with the mark means: all of this is done.

import type { MachineSpec } from "../vendors/vendor.ts";
import { NOTE_PATH } from "./machine-note.ts";

const SSHD_RULES = [
  "PasswordAuthentication no",
  "KbdInteractiveAuthentication no",
  "PermitRootLogin prohibit-password",
  "HostKey /etc/ssh/ssh_host_ed25519_key",
];

/**
 * #cloud-config user data (JSON is YAML): key-only root login, our host key, a firewall that opens SSH and the ports that were
 * asked for. Vultr's vendor data asks for an upgrade of all packages, which the mark would wait for: each of its keys that
 * matters is set here (hard case 50).
 */
export function cloudConfig(spec: MachineSpec, sshPort: number): string {
  const rules = sshPort === 22 ? SSHD_RULES : [...SSHD_RULES, `Port ${sshPort}`];
  const config = {
    ssh_pwauth: false,
    disable_root: false,
    package_update: false,
    package_upgrade: false,
    ssh_deletekeys: true,
    ssh_keys: { ed25519_private: spec.hostKey.privateKey, ed25519_public: spec.hostKey.publicKey },
    users: [{ name: "root", ssh_authorized_keys: [spec.publicKey] }],
    write_files: [
      { path: "/etc/ssh/sshd_config.d/00-clawcloud.conf", content: `${rules.join("\n")}\n` },
      { path: NOTE_PATH, content: spec.note },
    ],
    runcmd: [["sh", "-ec", lastBootStep(spec, sshPort)]],
  };
  return `#cloud-config\n${JSON.stringify(config, null, 1)}\n`;
}

/** What takes the place of a booted machine's data: no secret, and no change. An empty one would leave it degraded. */
export const SPENT_CLOUD_CONFIG = `#cloud-config\n${JSON.stringify({ ssh_pwauth: false, disable_root: false })}\n`;

/**
 * Cloud-init goes on after a module that failed, so this looks before it sets the mark: firewall up, the customer's key in
 * place, our host key in place, passwords off in what sshd itself makes of its files. Any of it missing, and the machine
 * never shows the mark: the attempt runs into its deadline and the next candidate is tried.
 */
const lastBootStep = (spec: MachineSpec, sshPort: number): string =>
  [
    "ufw default deny incoming",
    ...[sshPort, ...spec.ports].map((port) => `ufw allow ${port}/tcp`),
    "ufw --force enable",
    `grep -qF '${spec.publicKey}' /root/.ssh/authorized_keys`,
    `ssh-keygen -y -f /etc/ssh/ssh_host_ed25519_key | grep -qF '${spec.hostKey.publicKey}'`,
    "mkdir -p /run/sshd",
    "sshd -t",
    "sshd -T | grep -qx 'passwordauthentication no'",
    `echo 'VersionAddendum ${spec.mark}' > /etc/ssh/sshd_config.d/01-clawcloud-mark.conf`,
    "systemctl daemon-reload",
    "if systemctl is-active -q ssh.socket; then systemctl restart ssh.socket; fi",
    "systemctl restart ssh",
  ].join("\n");

/** Environment of a pod: the image's own start script installs PUBLIC_KEY, our start arguments use the others. */
export const podEnvironment = (spec: MachineSpec): Record<string, string> => ({
  PUBLIC_KEY: spec.publicKey,
  CLAWCLOUD_MARK: spec.mark,
  CLAWCLOUD_HOST_KEY: btoa(spec.hostKey.privateKey),
  CLAWCLOUD_NOTE: btoa(spec.note),
});

/**
 * Start arguments of a pod. The host key and sshd's rules are in place before the image's own start script, which keeps
 * a host key that it finds, adds PUBLIC_KEY and starts sshd.
 *
 * RunPod takes what is JSON for {cmd, entrypoint} and splits the rest as Python's shlex does; quotes with a `$` in them it
 * refuses (hard case 53). So the script travels as one word of base64, and the shell's braces stand for a space.
 */
export function podStartArguments(): string {
  const steps = [
    "set -e",
    // The start script must not inherit the mask: the tenant's files would be for root alone.
    "(umask 077; mkdir -p /etc/ssh; rm -f /etc/ssh/ssh_host_ed25519_key",
    'printf %s "$CLAWCLOUD_HOST_KEY" | base64 -d > /etc/ssh/ssh_host_ed25519_key)',
    "mkdir -p /etc/ssh/sshd_config.d",
    "ssh-keygen -y -f /etc/ssh/ssh_host_ed25519_key > /etc/ssh/ssh_host_ed25519_key.pub",
    `printf "%s\\n" ${SSHD_RULES.map((rule) => `"${rule}"`).join(" ")} "VersionAddendum $CLAWCLOUD_MARK" > /etc/ssh/sshd_config.d/00-clawcloud.conf`,
    // A machine without its note is still a machine.
    `printf %s "$CLAWCLOUD_NOTE" | base64 -d > ${NOTE_PATH} || true`,
    "unset CLAWCLOUD_HOST_KEY CLAWCLOUD_NOTE",
    "exec /start.sh < /dev/null",
  ];
  // In braces: the shell reads all of it before it begins, since its input is the script itself.
  return `bash -c {base64,-d}<<<${btoa(`{\n${steps.join("\n")}\n}\n`)}|bash`;
}

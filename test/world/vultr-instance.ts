// A machine of the Vultr simulator: what the API shows of it, and what its first boot makes of its user data.
import { parse } from "yaml";
import { type WrittenFile, writtenFiles } from "./disk.ts";
import type { Door, DoorKeys } from "./ssh-door.ts";

export type Instance = {
  id: string;
  region: string;
  plan: string;
  size: { vcpu: number; ram: number; disk: number };
  label: string;
  hostname: string;
  tags: string[];
  os: { id: number; name: string };
  userData: string;
  firewallGroup: string;
  password: string;
  createdAt: number;
  /** When its disk was written last: with its creation, or by a reinstallation. */
  installedAt: number;
  address: string;
  addressAt: number;
  boots: boolean;
  markShift: boolean;
  /** Neither the list nor its id shows it before. */
  shownAt: number;
  /** No change, reinstallation or delete is taken before. */
  lockedUntil: number;
  /** A delete was accepted and has not happened yet. */
  isEnding: boolean;
  /** Its address drops whoever asks for a connection. */
  isSilent: boolean;
  door: (Pick<Door, "close"> & { save: () => DoorKeys | null }) | undefined;
  timers: NodeJS.Timeout[];
};

export type Rule = {
  id: number;
  ip_type: string;
  protocol: string;
  port: string;
  subnet: string;
  subnet_size: number;
  notes: string;
};

export function viewOf(instance: Instance, bootMs: { active: number; ok: number }) {
  const now = Date.now();
  const age = now - instance.installedAt;
  const active = instance.boots && age >= bootMs.active;
  const ok = instance.boots && age >= bootMs.ok;
  // A reinstallation leaves a machine its address.
  const addressed = active || instance.installedAt > instance.createdAt;
  return {
    id: instance.id,
    os: instance.os.name,
    os_id: instance.os.id,
    app_id: 0,
    image_id: "",
    ram: instance.size.ram,
    disk: instance.size.disk,
    vcpu_count: instance.size.vcpu,
    allowed_bandwidth: 1_024,
    main_ip: addressed && now >= instance.addressAt ? instance.address : "0.0.0.0",
    netmask_v4: addressed ? "255.255.254.0" : "",
    gateway_v4: addressed ? "127.0.0.1" : "0.0.0.0",
    internal_ip: "",
    v6_main_ip: "",
    v6_network: "",
    v6_network_size: 0,
    region: instance.region,
    plan: instance.plan,
    status: active ? "active" : "pending",
    power_status: "running",
    server_status: now < instance.lockedUntil ? "locked" : ok ? "ok" : active ? "installingbooting" : "none",
    label: instance.label,
    hostname: instance.hostname,
    tags: instance.tags,
    firewall_group_id: instance.firewallGroup,
    features: ["ipv6"],
    user_scheme: "root",
    date_created: new Date(instance.createdAt).toISOString().replace(/\.\d+Z$/, "+00:00"),
    default_password: "",
    kvm: "",
  };
}

/** Machines of the same account that are none of ours, as odd as accounts have them: no list of machines may fail for one. */
export const ODD_NEIGHBOURS: readonly Record<string, unknown>[] = [
  { id: "8f3c1d1e-0000-4000-8000-000000000001", main_ip: null, plan: null, label: null, tags: null, status: "pending" },
  { id: "8f3c1d1e-0000-4000-8000-000000000002", main_ip: "198.51.100.7", status: "migrating", date_created: "" },
  {
    id: "8f3c1d1e-0000-4000-8000-000000000003",
    label: "web",
    tags: [],
    main_ip: "198.51.100.8",
    status: "active",
    power_status: null,
    server_status: "isomounting",
    date_created: "2024-02-31T00:00:00+00:00",
  },
];

/** What cloud-init would make of the user data: keys, firewall, banner. Null where SSH would stay shut. */
export function readCloudConfig(instance: Instance, rules: readonly Rule[], sshPort: number) {
  if (!instance.userData.startsWith("#cloud-config\n")) return null;
  const config = parse(instance.userData) as {
    ssh_pwauth?: boolean;
    ssh_keys?: { ed25519_private?: string };
    users?: { name?: string; ssh_authorized_keys?: string[] }[];
    write_files?: WrittenFile[];
    runcmd?: (string | string[])[];
  };
  const commands = (config.runcmd ?? [])
    .flatMap((command) => (Array.isArray(command) ? command : [command]))
    .flatMap((command) => command.split("\n"));
  const opened = commands.includes(`ufw allow ${sshPort}/tcp`);
  const passes = rules.some((rule) => rule.protocol === "tcp" && rule.port === String(sshPort));
  const listens =
    sshPort === 22 || (config.write_files ?? []).some((file) => file.content?.includes(`Port ${sshPort}\n`));
  if (!opened || !passes || !listens || config.ssh_pwauth !== false) return null;
  const mark = commands.map((command) => /VersionAddendum (\S+?)'/.exec(command)?.[1]).find((one) => one !== undefined);
  return {
    hostKey: config.ssh_keys?.ed25519_private ?? null,
    authorizedKeys: (config.users ?? []).find((user) => user.name === "root")?.ssh_authorized_keys ?? [],
    addendum: instance.markShift ? "somebody-else" : (mark ?? ""),
    files: writtenFiles(config.write_files),
  };
}

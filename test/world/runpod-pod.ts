// A pod of the RunPod simulator, and what the API shows of it.
import type { Door, DoorKeys } from "./ssh-door.ts";
import type { FaultKind } from "./vendor-server.ts";

export type Gpu = { id: string; name: string; memory: number; secure: number; community: number };

export type Pod = {
  id: string;
  name: string;
  cloud: "SECURE" | "COMMUNITY";
  gpu: Gpu;
  image: string;
  args: string;
  disk: number;
  ports: string[];
  registry: string | null;
  env: Record<string, string>;
  createdAt: number;
  /** When its container was started last: with its creation, or by a change of what it runs. */
  startedAt: number;
  /** The public port that 22/tcp is mapped to: given with the machine, before anything listens on it. */
  sshPort: number;
  addressAt: number;
  boots: boolean;
  locked: boolean;
  wrongMark: boolean;
  /** Neither the list nor its id shows it before. */
  shownAt: number;
  /** By when its image is there: until then it is starting. */
  pulledAt: number;
  /** Where its address is told: "ports" alone, in the runtime's ports, or nowhere, as of a pod without a public one. */
  addressIn: "ssh" | "ports" | "nowhere";
  /** A delete was accepted and has not happened yet. */
  isEnding: boolean;
  /** Its address drops whoever asks for a connection. */
  isSilent: boolean;
  door: (Pick<Door, "port" | "close"> & { save: () => DoorKeys | null }) | undefined;
  timers: NodeJS.Timeout[];
};

export function viewOf(pod: Pod, bootMs: { starting: number; running: number }) {
  const age = Date.now() - pod.startedAt;
  const running = pod.boots && Date.now() - Math.max(pod.startedAt, pod.pulledAt) >= bootMs.running;
  const status = running ? "RUNNING" : pod.boots && age >= bootMs.starting ? "STARTING" : "PROVISIONING";
  const port = pod.sshPort;
  const hasAddress = running && pod.ports.includes("22/tcp") && Date.now() >= pod.addressAt;
  return {
    id: pod.id,
    name: pod.name,
    status,
    actions: running ? ["stop", "restart", "terminate"] : ["stop", "terminate"],
    image: pod.image,
    args: pod.args,
    disk: pod.disk,
    mounts: {},
    ports: pod.ports,
    env: pod.env,
    registry: pod.registry,
    gpu: { id: pod.gpu.id, count: 1 },
    cloud: pod.cloud,
    dataCenterId: running ? "EU-RO-1" : null,
    cudaVersion: running ? "12.4" : null,
    ssh: {
      proxy: null,
      direct:
        hasAddress && pod.addressIn === "ssh"
          ? { host: "127.0.0.1", port, username: "root", command: `ssh root@127.0.0.1 -p ${port}` }
          : null,
    },
    template: null,
    cost: pod.cloud === "SECURE" ? pod.gpu.secure : pod.gpu.community,
    locked: pod.locked,
    globalNetworking: { enabled: false },
    runtime: running
      ? {
          uptime: Math.floor(age / 1_000),
          gpus: [],
          ports: hasAddress && pod.addressIn !== "nowhere" ? mappingOf(pod) : [],
        }
      : null,
    createdAt: new Date(pod.createdAt).toISOString(),
    startedAt: running ? new Date(Math.max(pod.startedAt, pod.pulledAt) + bootMs.running).toISOString() : null,
  };
}

/** Each port under another number, which is the same for as long as the pod is not started anew. */
const mappingOf = (pod: Pod) =>
  pod.ports.map((port, i) => {
    const [number = "", type] = port.split("/");
    return { private: Number(number), public: number === "22" ? pod.sshPort : pod.sshPort + i, type, ip: "127.0.0.1" };
  });

/** Pods of the same account that are none of ours, as odd as accounts have them: no list of pods may fail for one. */
export const ODD_NEIGHBOURS: readonly Record<string, unknown>[] = [
  { id: "neighbour00001", name: null, status: "MIGRATING", env: null, createdAt: null, ssh: null },
  { id: "neighbour00002", status: "RUNNING", env: { RANK: 1 }, createdAt: "2026-10-01T00:00:00Z", gpu: { count: 0 } },
  {
    id: "neighbour00003",
    name: "train",
    status: "RUNNING",
    createdAt: "",
    ssh: { direct: { host: null, port: null } },
  },
];

export const addressOf = (fault: FaultKind | undefined): Pod["addressIn"] =>
  fault === "no_address" ? "nowhere" : fault === "ports_only" ? "ports" : "ssh";

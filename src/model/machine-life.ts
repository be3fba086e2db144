// The life of a machine behind one purchase. A stage is `status/step`: the status is its word on the wire, the step is what the
// provisioner does next. src/README.md draws this table.
import { type Life, requireMove } from "./lives.ts";

/**
 * Whatever is done for it, another incarnation may get its token (`retire`), an operator may end it (`end`), its paid time may
 * be over (`prove`), or its purchase may turn out to be none (`failed`).
 */
const BESIDE_PROVISIONING = [
  "provisioning/retire",
  "provisioning/end",
  "expired/prove",
  "failed/clear",
  "failed/idle",
] as const;
const BESIDE_RUNNING = ["running/retire", "running/end", "expired/prove"] as const;
/** A reorg brings a purchase back whose row was given up: its machine is made anew. */
const BROUGHT_BACK = "provisioning/create";

/** `active`: the purchase stands and is worked on. `serves`: its owner can log in. */
const MACHINE_LIFE = {
  // The purchase is checked on chain, then a vendor is asked for a machine.
  "provisioning/create": {
    becomes: ["provisioning/find", "provisioning/boot", "provisioning/clear", ...BESIDE_PROVISIONING],
    active: true,
  },
  // The vendor's answer to the order is not known.
  "provisioning/find": {
    becomes: ["provisioning/boot", "provisioning/create", ...BESIDE_PROVISIONING],
    active: true,
  },
  // The vendor has the order; the machine has yet to answer SSH.
  "provisioning/boot": {
    becomes: ["running/scrub", "running/idle", "provisioning/clear", "provisioning/create", ...BESIDE_PROVISIONING],
    active: true,
  },
  // A machine of a failed attempt is being ended.
  "provisioning/clear": { becomes: ["provisioning/create", ...BESIDE_PROVISIONING], active: true },
  // The owner asked for new keys.
  "provisioning/rotate": {
    becomes: ["provisioning/boot", "provisioning/clear", ...BESIDE_PROVISIONING],
    active: true,
  },
  "provisioning/retire": {
    becomes: ["terminated/idle", BROUGHT_BACK, "failed/clear", "failed/idle"],
  },
  "provisioning/end": {
    becomes: ["terminated/idle", "provisioning/retire", "failed/clear", "failed/idle"],
  },
  // The vendor's copy of the host key is being removed.
  "running/scrub": {
    becomes: ["running/idle", "provisioning/rotate", "provisioning/create", ...BESIDE_RUNNING],
    active: true,
    serves: true,
  },
  "running/idle": {
    becomes: ["provisioning/rotate", "provisioning/create", ...BESIDE_RUNNING],
    active: true,
    serves: true,
  },
  "running/retire": { becomes: ["terminated/idle", "running/idle"] },
  "running/end": { becomes: ["terminated/idle", "running/retire"] },
  // Final history has to show that the paid time is over. It may show that it is not.
  "expired/prove": {
    becomes: ["terminated/idle", "running/idle", "provisioning/create", "expired/retire", "expired/end"],
  },
  "expired/retire": { becomes: ["terminated/idle", "expired/prove"] },
  "expired/end": { becomes: ["terminated/idle", "expired/retire"] },
  // A held token of an ended machine serves another order; a reorg may bring the purchase back.
  "terminated/idle": { becomes: ["provisioning/create", "terminated/retire"] },
  "terminated/retire": { becomes: ["terminated/idle", BROUGHT_BACK] },
  "failed/clear": { becomes: ["failed/idle", "failed/retire", BROUGHT_BACK] },
  // An operator orders another try, or the token serves another order.
  "failed/idle": { becomes: ["provisioning/create", "failed/clear", "failed/retire"] },
  "failed/retire": { becomes: ["terminated/idle", "failed/clear", BROUGHT_BACK] },
} as const;

export type MachineStage = keyof typeof MACHINE_LIFE;
type StatusOf<Stage> = Stage extends `${infer S}/${string}` ? S : never;
type StepOf<Stage> = Stage extends `${string}/${infer S}` ? S : never;
export type Status = StatusOf<MachineStage>;
export type Step = StepOf<MachineStage>;
type Flag = "active" | "serves";

export const machineLife: Life<MachineStage> & Record<MachineStage, { [F in Flag]?: true }> = MACHINE_LIFE;
export const MACHINE_STAGES = Object.keys(MACHINE_LIFE) as MachineStage[];

const splitStage = (stage: MachineStage) => stage.split("/") as [Status, Step];
export const STATUSES = [...new Set(MACHINE_STAGES.map((stage) => splitStage(stage)[0]))] as [Status, ...Status[]];
export const STEPS = [...new Set(MACHINE_STAGES.map((stage) => splitStage(stage)[1]))] as [Step, ...Step[]];

/** Stages with a flag. */
export const stagesThat = (flag: Flag): MachineStage[] => MACHINE_STAGES.filter((stage) => machineLife[stage][flag]);

/** Stages of these statuses. */
export const stagesOf = (...statuses: readonly Status[]): MachineStage[] =>
  MACHINE_STAGES.filter((stage) => statuses.includes(splitStage(stage)[0]));

/** The columns of a stage. */
export function columnsOf(stage: MachineStage): { status: Status; step: Step } {
  const [status, step] = splitStage(stage);
  return { status, step };
}

/** A row's stage. Whoever writes rows by hand can write a pair that is none. */
export const stageOf = ({ status, step }: { status: Status; step: Step }) => `${status}/${step}` as MachineStage;

/** Throws `ForbiddenMove` unless every one of these stages may become `to`. */
export const requireMachineMove = (from: MachineStage | readonly MachineStage[], to: MachineStage): void =>
  requireMove("machine", machineLife, from, to);

/** What `GET /credentials` and `/status` say while a machine is made. */
export const STEP_SENTENCES: Record<Step, string> = {
  create: "Checking the purchase on chain and ordering a machine.",
  find: "Asking the vendor whether the machine was made.",
  boot: "The machine is starting.",
  clear: "Ending a machine that did not start, before the next one is ordered.",
  rotate: "Reinstalling the machine with new keys, by the owner's order.",
  scrub: "The machine runs; the vendor's copy of its host key is being removed.",
  prove: "Checking the end of the paid time on chain.",
  retire: "Ending the machine of a purchase that the chain replaced.",
  end: "Ending the machine by an operator's order.",
  idle: "Nothing to do.",
};

/** While provisioning is paused a deadline is put off, by all pauses together a tenth of the paid time at most. */
export const pausedDeadline = ({
  deadline,
  putOff,
  createdAt,
  expiresAt,
}: {
  deadline: number;
  putOff: number;
  createdAt: number;
  expiresAt: number;
}): number => deadline + Math.max(0, Math.floor((expiresAt - createdAt) / 10) - putOff);

/** Chain time, in unix seconds, by which a purchase must run: the configured span, at most a tenth of what was paid for. */
export const provisioningDeadline = (seenAt: number, durationDays: number, configuredSeconds: number): number =>
  seenAt + Math.min(configuredSeconds, durationDays * 8_640);

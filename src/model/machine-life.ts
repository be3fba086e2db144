// The life of a machine behind one purchase. `status` is what the world sees; `step` is what the provisioner does next.
//
//   provisioning: create -> boot -> (published)       create -> find -> boot | create       boot -> clear -> create
//                 rotate -> boot | clear, by the owner's order; create, where the machine of a running one is gone
//   running:      scrub -> idle                                 failed: clear -> idle
//   expired:      prove -> (terminated | back to running)       any, once another incarnation holds its token: retire
//   any of these: end, by an operator's order

export const STATUSES = ["provisioning", "running", "expired", "terminated", "failed"] as const;
export type Status = (typeof STATUSES)[number];

export const STEPS = ["create", "find", "boot", "clear", "rotate", "scrub", "prove", "retire", "end", "idle"] as const;
export type Step = (typeof STEPS)[number];

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

const MOVES: Record<Status, readonly Status[]> = {
  provisioning: ["running", "failed", "expired", "terminated"],
  running: ["expired", "terminated", "provisioning"],
  expired: ["terminated", "running", "provisioning"],
  failed: ["provisioning", "terminated"],
  // A reorg can bring a purchase back whose machine was ended in the meantime.
  terminated: ["provisioning"],
};

/** Throws on a move that a machine's life does not have: a mistake of ours, to be loud about. */
export function requireMove(from: Status, to: Status): void {
  if (from !== to && !MOVES[from].includes(to)) throw new Error(`a machine does not go from ${from} to ${to}`);
}

/** Steps of a machine that serves its owner. */
export const SERVING_STEPS = ["scrub", "idle"] as const satisfies readonly Step[];

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

// What a vendor adapter is: five flat verbs and a catalog. Its errors are named by what the caller should do.

import type { OpenPort } from "../../model/ports.ts";
import type { Offer, VendorName } from "../../model/stock.ts";

/** What a machine is made from. Secrets in it go to the vendor and nowhere else. */
export type MachineSpec = {
  label: string;
  /** Random hex that the machine shows in its SSH banner once its boot is through. */
  mark: string;
  region: string;
  plan: string;
  /** authorized_keys line of the customer. */
  publicKey: string;
  hostKey: { privateKey: string; publicKey: string };
  /** TCP ports to be open beside SSH. */
  ports: readonly number[];
  /** Text of its /root/CLAWCLOUD.md. */
  note: string;
};

/** What every order at a vendor needs, as `prepare` found it: ids by name. No secrets. */
export type Supplies = Readonly<Record<string, string | number>>;

export type Machine = {
  instanceId: string;
  label: string;
  /** As the vendor carries it (tag, env); null where it has none of ours. */
  mark: string | null;
  /** Unix milliseconds; infinite where the vendor's date can't be read: too young for whatever goes by age. */
  createdAt: number;
  /** `up` means that the vendor says so: SSH opens later. `dead` will not come up any more. */
  state: "starting" | "up" | "dead";
  host: string | null;
  port: number | null;
  /** Where the vendor says that it stands, in the vendor's words: for operators. */
  phase: string;
  /** Seconds that its system has run for, by the vendor; null where the vendor does not say. */
  upSeconds: number | null;
  /** Where its ports are reached, as far as the vendor says; null where each is reached under its own number. */
  mapped: readonly { port: number; host: string; publicPort: number }[] | null;
};

/** Where the world reaches ports of a machine; null while the vendor has not said it of all of them. */
export function reachPorts(
  { host, mapped }: Pick<Machine, "host" | "mapped">,
  ports: readonly number[],
): OpenPort[] | null {
  const found = ports.map((port) =>
    mapped === null ? { port, host, publicPort: port } : mapped.find((one) => one.port === port),
  );
  return found.every((one) => one !== undefined) ? found : null;
}

export type Vendor = {
  name: VendorName;
  /** Reads (or makes once) what `create` needs for machines with these ports, so that a create is one call. Makes no machine. */
  prepare(ports?: readonly number[]): Promise<Supplies>;
  /** How many calls that takes the first time. */
  prepareCalls(ports: readonly number[]): number;
  create(spec: MachineSpec, supplies: Supplies): Promise<Machine>;
  /**
   * Gives a machine new keys, a new mark and a new name, and leaves nothing of what was on it. Settled when the vendor took
   * the order; may be ordered again. `next_candidate`: it never will. Null where a former owner would keep a way in.
   */
  reinstall: ((instanceId: string, spec: MachineSpec) => Promise<void>) | null;
  /** Takes the host key out of what the vendor stores of a machine that has booted. Null where that would restart it. */
  scrub: ((instanceId: string) => Promise<void>) | null;
  /** Null where the vendor knows no such machine. */
  get(instanceId: string): Promise<Machine | null>;
  /** Settled when the vendor took the order or had no such machine. */
  delete(instanceId: string): Promise<void>;
  /** The last lines that a machine's system has written, without secrets. Null where the vendor keeps none. */
  readLog: ((instanceId: string) => Promise<string[]>) | null;
  /** All machines of the account. Complete, or it throws: an answer cut short would buy a second machine. */
  list(): Promise<Machine[]>;
  /** What could be had at this moment; no reservation. */
  catalog(): Promise<Offer[]>;
  /** How many calls that takes. */
  catalogCalls: number;
  /** What the account can still spend, in USD; null where it is billed afterwards. Two calls at most. */
  balance(): Promise<number | null>;
};

/**
 * What to do about a vendor's answer:
 * - `next_candidate`: sold out there and nothing was made, try another region or plan; of a change: it never will
 * - `skip_candidate`: this order is not taken there and nothing was made; where every candidate says so, it is the request
 *   or the account
 * - `at_limit`: nothing was made, the account has as many machines as it may; one that was just ended counts for a while
 * - `wait`: nothing was made, the same call may work after `retryAfterSeconds`
 * - `page`: nothing was made and nothing will be until a person acts (money, key, account)
 * - `unknown`: something may have been made: look before anything else
 */
export type VendorAction = "next_candidate" | "skip_candidate" | "at_limit" | "wait" | "page" | "unknown";

export class VendorError extends Error {
  override readonly name = "VendorError";
  readonly safeToLog = true;
  readonly vendor: VendorName;
  readonly action: VendorAction;
  readonly status: number | undefined;
  readonly retryAfterSeconds: number;

  constructor(
    vendor: VendorName,
    action: VendorAction,
    detail: string,
    options: ErrorOptions & { status?: number; retryAfterSeconds?: number } = {},
  ) {
    super(`${vendor}: ${detail}`, options);
    this.vendor = vendor;
    this.action = action;
    this.status = options.status;
    this.retryAfterSeconds = options.retryAfterSeconds ?? 5;
  }
}

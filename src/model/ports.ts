// TCP ports that a buyer asks for beside SSH: which ones can be had, and how rows keep them. A row that can't be read opens
// nothing.
import { z } from "zod";
import { log } from "../log.ts";
import { parseJson } from "../parse-json.ts";
import type { Status } from "./machine-life.ts";

/**
 * With SSH there are nine: RunPod takes ten at most, and at Vultr each one costs two (IPv4, IPv6) of a firewall group's fifty
 * rules, and two calls.
 */
export const MAX_PORTS = 8;
const MAX_PORT = 65_535;
const SSH_PORT = 22;
const SMTP_PORT = 25;

/** A port of the machine and where the world reaches it: both null until the vendor has said so. */
export type OpenPort = { port: number; host: string | null; publicPort: number | null };

/** Why these ports can't be had, as the end of a sentence that begins with their name; null where they can. */
export function portsProblem(ports: readonly number[]): string | null {
  if (ports.length > MAX_PORTS) return `must be ${MAX_PORTS} ports at most`;
  if (!ports.every((port) => Number.isInteger(port) && port >= 1 && port <= MAX_PORT))
    return `must be whole numbers from 1 to ${MAX_PORT}; only TCP can be opened`;
  if (ports.includes(SSH_PORT)) return `must leave out ${SSH_PORT}: SSH is open on each machine`;
  if (ports.includes(SMTP_PORT)) return `must leave out ${SMTP_PORT}: vendors block mail; use 465 or 587`;
  return new Set(ports).size < ports.length ? "must name each port once" : null;
}

export const portNumbers = (ports: readonly OpenPort[]): number[] => ports.map(({ port }) => port);

/** In one order, so that the same wish is the same order. */
export const sortPorts = (ports: readonly number[]): number[] => ports.toSorted((a, b) => a - b);

/** As rows keep them; null for none. */
export const formatPorts = (ports: readonly number[] | readonly OpenPort[]): string | null =>
  ports.length === 0 ? null : JSON.stringify(ports);

/** The same ports, before their machine has an address. */
export const unreached = (ports: readonly number[]): OpenPort[] =>
  ports.map((port) => ({ port, host: null, publicPort: null }));

const asked = z.array(z.number());
const open = z.array(
  z.object({
    port: z.number(),
    host: z.string().min(1).nullable(),
    publicPort: z.int().min(1).max(MAX_PORT).nullable(),
  }),
);

/** What an order asks for. */
export const readPorts = (text: string | null): number[] => read(text, asked, (ports) => ports);

/** What a machine has. */
export const readOpenPorts = (text: string | null): OpenPort[] => read(text, open, portNumbers);

/** Open on a machine beside SSH; asked for, where it does not run yet; none where it is gone. */
export const portsOf = ({ status, ports }: { status: Status; ports: string | null }): OpenPort[] => {
  const all = status === "running" || status === "provisioning" ? readOpenPorts(ports) : [];
  return status === "running" ? all : unreached(portNumbers(all));
};

function read<T>(text: string | null, schema: z.ZodType<T[]>, numbersOf: (ports: T[]) => number[]): T[] {
  if (text === null) return [];
  const result = schema.safeParse(parseJson(text));
  if (result.success && portsProblem(numbersOf(result.data)) === null) return result.data;
  log("error", "ports_unreadable");
  return [];
}

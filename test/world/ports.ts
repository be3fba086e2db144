import { randomInt } from "node:crypto";
import { createServer } from "node:net";

// Below the range from which Linux answers a bind of port 0 (from 32768 on by default): no such bind of any process takes a
// port between its choice here and its use.
const FIRST = 20_000;
const END = 32_000;
const TRIES = 100;

const drawn = new Set<number>();

/** A port of 127.0.0.1 that nobody listens on at the moment of asking, and that this process was not given before. */
export async function freePort(): Promise<number> {
  for (let tries = 0; tries < TRIES; tries++) {
    const port = randomInt(FIRST, END);
    if (drawn.has(port) || !(await isFree(port))) continue;
    drawn.add(port);
    return port;
  }
  throw new Error(`no free port among ${TRIES} from ${FIRST} to ${END - 1}`);
}

const FIXED = {
  api: "the API",
  chain: "the chain",
  vultr: "Vultr's simulator",
  runpod: "RunPod's simulator",
  rpc: "the first RPC proxy",
  secondRpc: "the second RPC proxy",
  facilitator: "the facilitator",
  pager: "the pager",
} as const;
/** Where a world that is kept has its servers, from one start to the next. */
export type Ports = Record<keyof typeof FIXED, number>;

/** Ports in a row. Fails where one of them is taken, and says which and what to do. */
export async function claimPorts(first: number): Promise<Ports> {
  const names = Object.entries(FIXED);
  const ports = new Map<string, number>();
  for (const [index, [name, holder]] of names.entries()) {
    const port = first + index;
    if (!(await isFree(port))) {
      const range = `the ${names.length} ports from it on`;
      throw new Error(
        `port ${port}, of ${holder}, is taken: end what listens there, or choose ${range} by --port ${first + 1_000}`,
      );
    }
    ports.set(name, port);
  }
  return Object.fromEntries(ports) as Ports;
}

function isFree(port: number): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const probe = createServer();
    probe.once("error", (error: NodeJS.ErrnoException) => {
      if (error.code === "EADDRINUSE" || error.code === "EACCES") resolve(false);
      else reject(error);
    });
    probe.listen(port, "127.0.0.1", () => probe.close(() => resolve(true)));
  });
}

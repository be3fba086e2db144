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

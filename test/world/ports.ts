import { createServer } from "node:net";

/** A port of 127.0.0.1 that nobody listens on at the moment of asking. */
export function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const probe = createServer();
    probe.once("error", reject);
    probe.listen(0, "127.0.0.1", () => {
      const address = probe.address();
      if (address === null || typeof address === "string") throw new Error("no port in the probe's address");
      probe.close(() => resolve(address.port));
    });
  });
}

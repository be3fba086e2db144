import { connect } from "cloudflare:sockets";
import { inTime } from "../../in-time.ts";
import { takeSocket } from "../../outbound.ts";

const MAX_BANNER_BYTES = 2_048;
/** A close that has not come by then is given up: at Cloudflare's it takes some 21 seconds. */
const CLOSE_LIMIT_MS = 30_000;

/**
 * The identification line of an SSH server (RFC 4253, section 4.2), or null where none came in time. Never throws: a
 * closed port is what a booting machine looks like.
 */
export async function readBanner(host: string, port: number, timeoutMs: number): Promise<string | null> {
  const free = await takeSocket();
  const quietly = (work: Promise<unknown>) => work.catch(() => undefined);
  let closing: () => Promise<unknown> = async () => undefined;
  try {
    const socket = connect({ hostname: host.includes(":") ? `[${host}]` : host, port });
    closing = () => inTime(socket.close(), CLOSE_LIMIT_MS, () => new Error("no close in time"));
    // These settle when the other side is gone; unhandled they would end the invocation.
    void quietly(socket.opened);
    void quietly(socket.closed);
    return await inTime(readLine(socket), timeoutMs, () => new Error("no banner in time"));
  } catch {
    return null;
  } finally {
    // Nobody waits for it: where the connection was never made it takes as long as the system tries (hard case 52).
    void quietly(closing()).then(free);
  }
}

async function readLine(socket: Socket): Promise<string | null> {
  const reader = socket.readable.getReader();
  const decoder = new TextDecoder();
  let text = "";
  while (text.length < MAX_BANNER_BYTES) {
    const { done, value } = await reader.read();
    text += decoder.decode(value, { stream: !done });
    // A server may send other lines before its identification.
    const line = text.split("\n").find((one, i, all) => one.startsWith("SSH-") && i < all.length - 1);
    if (line !== undefined) return line.trim();
    if (done) return null;
  }
  return null;
}

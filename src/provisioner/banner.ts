import { connect } from "cloudflare:sockets";

const MAX_BANNER_BYTES = 2_048;

/**
 * The identification line of an SSH server (RFC 4253, section 4.2), or null where none came in time. Never throws: a
 * closed port is what a booting machine looks like.
 */
export async function readBanner(host: string, port: number, timeoutMs: number): Promise<string | null> {
  const socket = connect({ hostname: host.includes(":") ? `[${host}]` : host, port });
  // Both settle when the other side is gone; unhandled they would end the invocation.
  socket.opened.catch(() => undefined);
  socket.closed.catch(() => undefined);
  const timer = setTimeout(() => void socket.close().catch(() => undefined), timeoutMs);
  try {
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
  } catch {
    return null;
  } finally {
    clearTimeout(timer);
    await socket.close().catch(() => undefined);
  }
}

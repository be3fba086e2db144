// HTTP servers of the local world, on 127.0.0.1.
import { request as ask, createServer, type Server } from "node:http";
import { serve } from "@hono/node-server";

/**
 * Servers here never close a connection that is idle, and name no time after which they would: whoever called closes it
 * (undici after four seconds, workerd after five), so that no request meets a connection that is being closed just then.
 */
export const KEEP_ALIVE = { keepAliveTimeout: 0 };

export type Listening = { port: number; stop: () => Promise<void> };
type Answer = Response | Promise<Response>;

/** Listens on that port; on any free one where it is 0. */
export function listen(fetch: (request: Request) => Answer, port = 0): Promise<Listening> {
  return new Promise((resolve) => {
    const server = serve({ fetch, hostname: "127.0.0.1", port, serverOptions: KEEP_ALIVE }, (info) =>
      resolve({ port: info.port, stop: () => stop(server as Server) }),
    );
  });
}

/**
 * Cloudflare in front of a Worker: an address that is known before the Worker's own, and the client's address in a header.
 * Answers 503 as long as `target` has no URL.
 */
export function startFront(target: () => string | undefined, atPort = 0): Promise<Listening> {
  const server = createServer(KEEP_ALIVE, (request, response) => {
    // Cloudflare answers TRACE and CONNECT itself.
    if (request.method === "TRACE") return void response.writeHead(405).end();
    const url = target();
    if (url === undefined) return void response.writeHead(503).end();
    const headers = { ...request.headers, "cf-connecting-ip": request.socket.remoteAddress };
    // A connection for each: none that the runtime is about to close.
    const passed = ask(url, { method: request.method, path: request.url, headers, agent: false }, (answer) => {
      const { connection: _, ...own } = answer.headers;
      response.writeHead(answer.statusCode ?? 502, own);
      answer.on("error", () => response.destroy()).pipe(response);
    });
    passed.on("error", () => response.destroy());
    response.on("close", () => passed.destroy());
    request.pipe(passed);
  });
  server.on("connect", (_request, socket) => {
    socket.on("error", () => socket.destroy());
    socket.end("HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
  });
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen(atPort, "127.0.0.1", () => {
      const address = server.address();
      if (address === null || typeof address === "string") return reject(new Error("no port in the front's address"));
      resolve({ port: address.port, stop: () => stop(server) });
    });
  });
}

function stop(server: Server): Promise<void> {
  server.closeAllConnections();
  return new Promise((resolve) => server.close(() => resolve()));
}

// HTTP servers of the local world, on 127.0.0.1.
import { request as ask, createServer, type Server } from "node:http";
import { type HttpBindings, serve } from "@hono/node-server";

/**
 * Servers here never close a connection that is idle, and name no time after which they would: whoever called closes it
 * (undici after four seconds, workerd after five), so that no request meets a connection that is being closed just then.
 */
export const KEEP_ALIVE = { keepAliveTimeout: 0 };

export type Listening = { port: number; stop: () => Promise<void> };
type Answer = Response | Promise<Response>;

/** Listens on any free port, or on the one that is told. */
export function listen(fetch: (request: Request, env: HttpBindings) => Answer, port = 0): Promise<Listening> {
  return new Promise((resolve) => {
    const options = { fetch: fetch as Parameters<typeof serve>[0]["fetch"], hostname: "127.0.0.1", port };
    const server = serve({ ...options, serverOptions: KEEP_ALIVE }, (info) =>
      resolve({ port: info.port, stop: () => stop(server as Server) }),
    );
  });
}

/** Cloudflare in front of a Worker at `target`: an address that is known beforehand, and the client's own in a header. */
export function startFront(port: number, target: string): Promise<Listening> {
  const server = createServer(KEEP_ALIVE, (request, response) => {
    // What fetch can't pass on, Cloudflare refuses as well.
    if (request.method === "TRACE") return void response.writeHead(405).end();
    const headers = { ...request.headers, "cf-connecting-ip": request.socket.remoteAddress };
    // A connection for each: none that the runtime is about to close.
    const passed = ask(target, { method: request.method, path: request.url, headers, agent: false }, (answer) => {
      const { connection: _, ...own } = answer.headers;
      response.writeHead(answer.statusCode ?? 502, own);
      answer.on("error", () => response.destroy()).pipe(response);
    });
    passed.on("error", () => response.destroy());
    response.on("close", () => passed.destroy());
    request.pipe(passed);
  });
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen(port, "127.0.0.1", () => {
      const address = server.address();
      resolve({
        port: typeof address === "object" && address !== null ? address.port : port,
        stop: () => stop(server),
      });
    });
  });
}

function stop(server: Server): Promise<void> {
  server.closeAllConnections();
  return new Promise((resolve) => server.close(() => resolve()));
}

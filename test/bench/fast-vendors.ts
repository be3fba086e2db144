// RunPod's calls without its waits: a pod runs as soon as it is made, and behind it is a banner instead of a machine. The
// simulator of the local world checks requests and opens doors; this one is to cost next to nothing. Vultr is there, and
// has nothing.
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { createServer as createListener } from "node:net";

const PAGE = 1_000;

type Pod = { id: string; name: string; env: Record<string, string>; createdAt: string; port: number };

export async function startFastVendors() {
  const pods: Pod[] = [];
  const calls = { create: 0, list: 0, get: 0, catalog: 0, other: 0, vultr: 0 };

  const server = createServer((request, response) => {
    answer(request, response).catch((error: unknown) => {
      console.error("the fast vendor failed:", error);
      response.writeHead(500).end();
    });
  });

  async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { pathname, searchParams } = new URL(request.url ?? "/", "http://vendor");
    const send = (status: number, body: unknown) =>
      response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
    if (pathname.startsWith("/vultr/")) {
      calls.vultr += 1;
      send(200, { instances: [], available_plans: [], meta: { links: { next: "" } } });
    } else if (pathname === "/v2/catalog/gpus") {
      calls.catalog += 1;
      send(200, { gpus: [] });
    } else if (pathname === "/v2/pods" && request.method === "POST") {
      calls.create += 1;
      send(201, view(await makePod(JSON.parse(await textOf(request)) as Pick<Pod, "name" | "env">)));
    } else if (pathname === "/v2/pods") {
      calls.list += 1;
      const from = Number(searchParams.get("cursor") ?? 0);
      const hasNextPage = from + PAGE < pods.length;
      const pagination = { hasNextPage, nextCursor: hasNextPage ? String(from + PAGE) : null };
      send(200, { pods: pods.slice(from, from + PAGE).map(view), pagination });
    } else {
      calls[request.method === "GET" ? "get" : "other"] += 1;
      const pod = pods.find((one) => pathname === `/v2/pods/${one.id}`);
      send(pod === undefined ? 404 : 200, pod === undefined ? {} : view(pod));
    }
  }

  async function makePod({ name, env }: Pick<Pod, "name" | "env">): Promise<Pod> {
    const port = await sayOnce(`SSH-2.0-OpenSSH_9.6p1 ${env["CLAWCLOUD_MARK"]}\r\n`);
    const pod = { id: `pod${pods.length}`, name, env, createdAt: new Date().toISOString(), port };
    pods.push(pod);
    return pod;
  }

  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("the fast vendor has no port");
  const url = `http://127.0.0.1:${address.port}`;
  return {
    runpodUrl: url,
    vultrUrl: `${url}/vultr`,
    calls,
    pods,
    stop: () => {
      server.closeAllConnections();
      return new Promise<void>((resolve) => server.close(() => resolve()));
    },
  };
}

const view = ({ id, name, env, createdAt, port }: Pod) => ({
  id,
  name,
  status: "RUNNING",
  env,
  createdAt,
  ssh: { direct: { host: "127.0.0.1", port, username: "root" } },
});

/** Listens on a port of its own for one client, who reads the text. */
function sayOnce(text: string): Promise<number> {
  return new Promise((resolve, reject) => {
    const listener = createListener((socket) => {
      socket.on("error", () => undefined);
      socket.end(text);
      listener.close();
    });
    listener.unref();
    listener.once("error", reject);
    listener.listen(0, "127.0.0.1", () => {
      const address = listener.address();
      resolve(typeof address === "object" && address !== null ? address.port : 0);
    });
  });
}

async function textOf(request: IncomingMessage): Promise<string> {
  let text = "";
  for await (const chunk of request) text += String(chunk);
  return text;
}

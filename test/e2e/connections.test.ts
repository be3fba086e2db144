// Connections that stay open between two requests: who closes them, and what becomes of a request that meets the close.
import { createServer, type Server } from "node:http";
import { type AddressInfo, connect, type Socket } from "node:net";
import { afterEach, expect, test } from "vitest";
import { askAgain, fetchAgain, tellError } from "../world/http.ts";
import { KEEP_ALIVE, listen, startFront } from "../world/server.ts";

const MOST = 1_000;
const ends: (() => unknown)[] = [];
afterEach(async () => {
  for (const end of ends.splice(0)) await end();
});

/** Answers each connection's first request, and closes it without a word when the next one comes. */
async function startFickleServer() {
  const answered = new Set<Socket>();
  const bodies: string[] = [];
  let closed = 0;
  const server: Server = createServer((request, response) => {
    if (answered.has(request.socket)) {
      closed += 1;
      request.socket.destroy();
      return;
    }
    answered.add(request.socket);
    let body = "";
    request.setEncoding("utf8").on("data", (data: string) => {
      body += data;
    });
    request.on("end", () => {
      bodies.push(body);
      response.end("fine");
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  ends.push(() => {
    server.closeAllConnections();
    server.close();
  });
  const { port } = server.address() as AddressInfo;
  return { url: `http://127.0.0.1:${port}`, bodies, closed: () => closed };
}

test("a request that meets a connection which its server has closed is sent again, as it was", async () => {
  const server = await startFickleServer();
  const order = { method: "POST", body: "a signed payment" };
  let sent = 0;
  // Whether a connection is used again is the client's affair.
  for (; server.closed() < 2 && sent < MOST; sent++) {
    expect(await (await fetchAgain(server.url, order)).text()).toBe("fine");
  }
  expect(server.closed()).toBeGreaterThanOrEqual(2);
  expect(server.bodies).toEqual(Array.from({ length: sent }, () => "a signed payment"));
});

test("without that the request fails, and the whole chain of causes is told", async () => {
  const server = await startFickleServer();
  let failure: unknown;
  for (let sent = 0; failure === undefined && sent < MOST; sent++) {
    await fetch(server.url).then(
      (answer) => answer.text(),
      (cause: unknown) => {
        failure = new Error('phase "machine"', { cause });
      },
    );
  }
  expect(tellError(failure)).toMatch(/^phase "machine"\n {2}because: fetch failed\n {2}because: .+ \(\w+\)$/);
});

test("an answer whose connection breaks in its body is asked for again", async () => {
  let asked = 0;
  const server = createServer((_, response) => {
    asked += 1;
    response.writeHead(200, { "content-length": "4" });
    if (asked > 1) return response.end("fine");
    response.write("fi", () => response.destroy());
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  ends.push(() => server.close());
  const { port } = server.address() as AddressInfo;
  const answer = await fetchAgain(`http://127.0.0.1:${port}`);
  expect(await answer.text()).toBe("fine");
  expect(asked).toBe(2);
});

test("a signed request was answered 503 with its nonce spent, and failed its test: it is asked again with another one", async () => {
  const spent = new Set<string>();
  const server = await listen(async (request) => {
    const nonce = await request.text();
    if (spent.has(nonce)) return new Response("nonce_used", { status: 401 });
    spent.add(nonce);
    return spent.size < 3 ? new Response("chain_unavailable", { status: 503 }) : new Response(nonce);
  });
  ends.push(server.stop);
  let signed = 0;
  const answer = await askAgain(() =>
    fetch(`http://127.0.0.1:${server.port}`, { method: "POST", body: `nonce ${++signed}` }),
  );
  expect([answer.status, await answer.text()]).toEqual([200, "nonce 3"]);
});

test("a server that is not there is given up, and the reason is told", async () => {
  const gone = await listen(() => new Response("fine"));
  await gone.stop();
  const error = await fetchAgain(`http://127.0.0.1:${gone.port}`).catch((cause: unknown) => cause);
  expect(tellError(error)).toMatch(/^fetch failed\n.*ECONNREFUSED/s);
});

test("the world's servers keep an idle connection and name no time after which they would close it", async () => {
  const plain = await listen((request) => new Response(new URL(request.url).pathname));
  const front = await startFront(() => `http://127.0.0.1:${plain.port}`);
  ends.push(plain.stop, front.stop);
  // What Node's servers do by themselves: the client adopts five seconds, and both close at the same moment.
  const usual = createServer((_, response) => response.end());
  await new Promise<void>((resolve) => usual.listen(0, "127.0.0.1", resolve));
  ends.push(() => usual.close());
  expect(await headOf((usual.address() as AddressInfo).port)).toMatch(/^Keep-Alive: timeout=5\r$/im);
  for (const { port } of [plain, front]) {
    const head = await headOf(port);
    expect(head).toMatch(/^Connection: keep-alive\r$/im);
    expect(head).not.toMatch(/^Keep-Alive:/im);
  }
  expect(createServer(KEEP_ALIVE).keepAliveTimeout).toBe(0);
});

test("the front passes on the request as it came, and tells the client's address where a client claims another", async () => {
  const plain = await listen(async (request) => {
    const { method, url, headers } = request;
    const address = headers.get("cf-connecting-ip");
    return Response.json({ method, url, address, body: await request.text() }, { status: 201 });
  });
  const front = await startFront(() => `http://127.0.0.1:${plain.port}`);
  ends.push(plain.stop, front.stop);
  const url = `http://127.0.0.1:${front.port}/path?query=1`;
  const answer = await fetch(url, { method: "POST", body: "text", headers: { "cf-connecting-ip": "203.0.113.1" } });
  expect(answer.status).toBe(201);
  expect(await answer.json()).toEqual({ method: "POST", url, address: "127.0.0.1", body: "text" });
});

test("the front answers 503 until it has a target, and 405 to TRACE and CONNECT", async () => {
  let target: string | undefined;
  const front = await startFront(() => target);
  const plain = await listen(() => new Response("fine"));
  ends.push(plain.stop, front.stop);
  expect((await fetch(`http://127.0.0.1:${front.port}`)).status).toBe(503);
  target = `http://127.0.0.1:${plain.port}`;
  expect((await fetch(`http://127.0.0.1:${front.port}`)).status).toBe(200);
  expect(await headOf(front.port, "TRACE /")).toMatch(/^HTTP\/1\.1 405 /);
  expect(await headOf(front.port, "CONNECT localhost:1")).toMatch(/^HTTP\/1\.1 405 /);
});

/** The head of the answer to one request. */
function headOf(port: number, what = "GET /"): Promise<string> {
  return new Promise((resolve, reject) => {
    let text = "";
    const socket = connect(port, "127.0.0.1", () => socket.write(`${what} HTTP/1.1\r\nHost: localhost\r\n\r\n`));
    socket.setEncoding("utf8").on("data", (data: string) => {
      text += data;
      if (!text.includes("\r\n\r\n")) return;
      socket.destroy();
      resolve(text);
    });
    socket.on("error", reject);
  });
}

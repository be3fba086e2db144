// An RPC URL that can lag, lie and fail, in front of the honest node.
import { Agent, request } from "node:http";
import { Hono } from "hono";
import { z } from "zod";
import { listen } from "./server.ts";

/**
 * What the proxy does to the calls it passes on:
 * - `down`: 503 to everything, or to what contains `includes`
 * - `hang`: no answer
 * - `lag`: it is `blocks` behind: its head is older, and logs above it are an empty list, not an error
 * - `drop_logs`: eth_getLogs answers an empty list, however old the range
 * - `max_range`, `max_logs`: eth_getLogs refuses more than `blocks` blocks or `logs` logs, of requests that contain
 *   `includes` where that is given; `as` says how: in words that name the limit, in a provider's prose with other
 *   numbers beside it, or in words that don't, by a page of HTTP's (`status`, 502 if not given), or by no answer
 * - `body`: calls to `method` are answered with 200 and that text
 * - `rewrite`: the result of calls to `method`, or of those whose parameters contain `includes`, is `result`
 * - `refuse`: an error instead, with that message
 * - `patch`: as `rewrite`, for some `fields` of the result, or of each item where it is a list; the others stay as they are
 * - `delay`: it answers `ms` later, so that it is the second or the last to be heard
 * - `logs_behind`: it knows the newest state, and of the newest `blocks` neither logs nor receipts
 * - `finalized_is_latest`: it calls its newest block final
 * - `ahead`: the time of its newest block is `seconds` ahead, for calls as well
 */
const refusal = {
  as: z.enum(["named", "prose", "unnamed", "page", "nothing"]).optional(),
  status: z.int().min(400).max(599).optional(),
  includes: z.string().optional(),
};
const faultSchema = z.discriminatedUnion("kind", [
  z.strictObject({ kind: z.enum(["hang", "drop_logs", "finalized_is_latest"]) }),
  z.strictObject({ kind: z.literal("down"), includes: z.string().optional() }),
  z.strictObject({ kind: z.enum(["lag", "logs_behind"]), blocks: z.int().min(0) }),
  z.strictObject({ kind: z.literal("max_range"), blocks: z.int().min(0), ...refusal }),
  z.strictObject({ kind: z.literal("max_logs"), logs: z.int().min(0), ...refusal }),
  z.strictObject({ kind: z.literal("body"), method: z.string(), body: z.string() }),
  z.strictObject({
    kind: z.literal("rewrite"),
    method: z.string(),
    includes: z.string().optional(),
    result: z.unknown(),
  }),
  z.strictObject({
    kind: z.literal("refuse"),
    method: z.string(),
    includes: z.string().optional(),
    message: z.string(),
  }),
  z.strictObject({
    kind: z.literal("patch"),
    method: z.string(),
    includes: z.string().optional(),
    fields: z.record(z.string(), z.unknown()),
  }),
  z.strictObject({ kind: z.literal("delay"), ms: z.int().min(1) }),
  z.strictObject({ kind: z.literal("ahead"), seconds: z.int().min(1) }),
]);
export type RpcFault = z.input<typeof faultSchema>;
type Limit = Extract<RpcFault, { kind: "max_range" | "max_logs" }>;
/** A request for logs that came. */
export type LogRequest = { from: number; blocks: number; refused: boolean };

type Call = { jsonrpc: "2.0"; id: unknown; method: string; params: unknown[] };
type Given = Omit<Call, "params"> & Partial<Call>;
type Answer = { jsonrpc: "2.0"; id: unknown; result?: unknown; error?: { code: number; message: string } };
/** What is no answer by JSON-RPC's rules. */
type Page = { status: number; text: string };
const isPage = (answer: Answer | Page): answer is Page => "text" in answer;

const HANG_MS = 30_000;
/** Which parameter names the block that is asked about. */
const TAG_AT: Readonly<Record<string, number>> = {
  eth_getBlockByNumber: 0,
  eth_call: 1,
  eth_estimateGas: 1,
  eth_simulateV1: 1,
};
const LOG_METHODS: ReadonlySet<string> = new Set(["eth_getLogs", "eth_getTransactionReceipt"]);

/** As Alchemy has it. */
const proseOf = (blocks: number): string => {
  const named = blocks >= 1_000 && blocks % 1_000 === 0 ? `${blocks / 1_000}K` : String(blocks);
  return `You can make eth_getLogs requests with up to a ${named} block range and no limit on the response size, or you can request any block range with a cap of 10K logs in the response.`;
};

const isMeant = ({ method, includes = "" }: { method: string; includes?: string | undefined }, call: Call): boolean =>
  method === call.method && JSON.stringify(call.params).includes(includes);

/** Posts JSON and resolves with what is answered: `fetch` takes several times as much, and most of a test is such calls. */
function poster(target: string, agent: Agent): (body: string) => Promise<string> {
  return (body) =>
    new Promise((resolve, reject) => {
      const headers = { "content-type": "application/json", "content-length": Buffer.byteLength(body) };
      const asked = request(target, { method: "POST", agent, headers }, (answer) => {
        const parts: Buffer[] = [];
        answer.on("data", (part: Buffer) => parts.push(part));
        answer.on("end", () => resolve(Buffer.concat(parts).toString()));
        answer.on("error", reject);
      });
      asked.on("error", reject);
      asked.end(body);
    });
}

export async function startRpcProxy(target: string, atPort = 0) {
  // A connection that has been idle for so long may be about to be closed.
  const agent = new Agent({ keepAlive: true, timeout: 4_000 });
  const post = poster(target, agent);
  const faults: RpcFault[] = [];
  const app = new Hono();
  const logRequests: LogRequest[] = [];
  let calls = 0;

  app.get("/control/faults", (c) => c.json(faults));
  app.post("/control/faults", async (c) => {
    const fault = faultSchema.safeParse(await c.req.json().catch(() => null));
    if (!fault.success) return c.json({ error: z.prettifyError(fault.error) }, 400);
    faults.push(fault.data);
    return c.json(faults, 201);
  });
  app.delete("/control/faults", (c) => {
    faults.length = 0;
    return c.body(null, 204);
  });
  app.get("/control/logs", (c) => c.json(logRequests));
  app.delete("/control/logs", (c) => {
    logRequests.length = 0;
    return c.body(null, 204);
  });
  // At any path: providers put their keys there.
  app.post("*", async (c) => {
    const asked = await c.req.text();
    const isHonest = faults.length === 0 && asked.startsWith("{") && !asked.includes('"eth_getLogs"');
    if (isHonest) {
      calls += 1;
      return c.body(await post(asked), 200, { "content-type": "application/json" });
    }
    const body = JSON.parse(asked) as Call | Call[];
    const text = JSON.stringify(body);
    if (faults.some((fault) => fault.kind === "down" && text.includes(fault.includes ?? "")))
      return c.text("Service Unavailable", 503);
    if (faults.some((fault) => fault.kind === "hang")) {
      await new Promise((resolve) => setTimeout(resolve, HANG_MS).unref());
    }
    for (const fault of faults)
      if (fault.kind === "delay") await new Promise((resolve) => setTimeout(resolve, fault.ms));
    if (Array.isArray(body)) return c.json(await Promise.all(body.map(answer)));
    const answered = await answer(body);
    if (!isPage(answered)) return c.json(answered);
    const type = answered.status === 200 ? "application/json" : "text/html";
    return new Response(answered.text, { status: answered.status, headers: { "content-type": type } });
  });

  async function forward(call: Call): Promise<Answer> {
    calls += 1;
    return JSON.parse(await post(JSON.stringify(call))) as Answer;
  }

  async function answer(given: Given): Promise<Answer | Page> {
    const answered = await answerBy(given);
    if (given.method === "eth_getLogs") {
      const [{ fromBlock, toBlock }] = given.params as [{ fromBlock: string; toBlock: string }];
      const refused = isPage(answered) || answered.error !== undefined;
      const [from, to] = [Number(fromBlock), Number(toBlock)];
      logRequests.push({ from, blocks: to - from + 1, refused });
    }
    return answered;
  }

  /** What a limit makes of a request for logs; null where it is kept. */
  async function limited(fault: Limit, call: Call): Promise<Answer | Page | null> {
    if (!isMeant({ method: "eth_getLogs", includes: fault.includes }, call)) return null;
    const { fromBlock, toBlock } = call.params[0] as { fromBlock: string; toBlock: string };
    const most = fault.kind === "max_range" ? fault.blocks : fault.logs;
    const asked =
      fault.kind === "max_range"
        ? Number(toBlock) - Number(fromBlock) + 1
        : ((await forward(call)).result as unknown[]).length;
    if (asked <= most) return null;
    if (fault.as === "nothing") await new Promise((resolve) => setTimeout(resolve, HANG_MS).unref());
    if (fault.as === "page")
      return { status: fault.status ?? 502, text: "<html><title>502 Bad Gateway</title></html>" };
    const named = fault.kind === "max_range" && fault.as !== "unnamed";
    const sentence = fault.as === "prose" ? proseOf(most) : `eth_getLogs is limited to a ${most} range`;
    const message = named ? sentence : "You can request any block range with a cap of 10K logs in the response.";
    return { jsonrpc: "2.0", id: call.id, error: { code: -32_614, message } };
  }

  /** `params` may be left out (JSON-RPC 2.0, 4.2). */
  async function answerBy({ params = [], ...given }: Given): Promise<Answer | Page> {
    const isLatest = faults.some(({ kind }) => kind === "finalized_is_latest");
    const meant = (param: unknown) => (isLatest && (param === "finalized" || param === "safe") ? "latest" : param);
    const call: Call = { ...given, params: params.map(meant) };
    for (const fault of faults) {
      if (fault.kind === "rewrite" && isMeant(fault, call))
        return { jsonrpc: "2.0", id: call.id, result: fault.result };
      if (fault.kind === "refuse" && isMeant(fault, call))
        return { jsonrpc: "2.0", id: call.id, error: { code: -32_000, message: fault.message } };
      if (fault.kind === "patch" && isMeant(fault, call)) return patched(call, fault.fields);
      if (fault.kind === "drop_logs" && call.method === "eth_getLogs")
        return { jsonrpc: "2.0", id: call.id, result: [] };
      if (fault.kind === "max_range" || fault.kind === "max_logs") {
        const refused = await limited(fault, call);
        if (refused !== null) return refused;
      }
      if (fault.kind === "body" && fault.method === call.method) return { status: 200, text: fault.body };
      if (fault.kind === "lag") return behind(call, fault.blocks);
      if (fault.kind === "logs_behind" && LOG_METHODS.has(call.method)) return withoutNewest(call, fault.blocks);
      if (fault.kind === "ahead" && call.params.includes("latest")) return ahead(call, fault.seconds);
    }
    return forward(call);
  }

  async function patched(call: Call, fields: Record<string, unknown>): Promise<Answer> {
    const honest = await forward(call);
    const { result } = honest;
    const patch = (one: unknown) => (typeof one === "object" && one !== null ? { ...one, ...fields } : one);
    return { ...honest, result: Array.isArray(result) ? result.map(patch) : patch(result) };
  }

  async function withoutNewest(call: Call, blocks: number): Promise<Answer> {
    const head = Number((await forward({ ...call, method: "eth_blockNumber", params: [] })).result) - blocks;
    const honest = await forward(call);
    const isKnown = (one: unknown) => Number((one as { blockNumber?: string } | null)?.blockNumber) <= head;
    const { result } = honest;
    return { ...honest, result: Array.isArray(result) ? result.filter(isKnown) : isKnown(result) ? result : null };
  }

  async function ahead(call: Call, seconds: number): Promise<Answer> {
    const head = await forward({ ...call, method: "eth_getBlockByNumber", params: ["latest", false] });
    const time = `0x${(Number((head.result as { timestamp: string }).timestamp) + seconds).toString(16)}`;
    if (call.method === "eth_getBlockByNumber") return patched(call, { timestamp: time });
    if (call.method !== "eth_call") return forward(call);
    const [request, tag, states = {}] = call.params;
    return forward({ ...call, params: [request, tag, states, { time }] });
  }

  async function behind(call: Call, blocks: number): Promise<Answer> {
    const head = Number((await forward({ ...call, method: "eth_blockNumber", params: [] })).result) - blocks;
    const cap = (tag: unknown) =>
      tag === "latest" || Number(tag) > head ? `0x${Math.max(0, head).toString(16)}` : tag;
    if (call.method === "eth_blockNumber") return { jsonrpc: "2.0", id: call.id, result: cap("latest") };
    const tagAt = TAG_AT[call.method];
    if (tagAt !== undefined) {
      const tag = call.params[tagAt] ?? "latest";
      if (call.method === "eth_getBlockByNumber" && Number(tag) > head)
        return { jsonrpc: "2.0", id: call.id, result: null };
      const params = [...call.params];
      params[tagAt] = cap(tag);
      return forward({ ...call, params });
    }
    if (call.method === "eth_getLogs") {
      const [filter] = call.params as [{ fromBlock: string; toBlock: string }];
      if (Number(filter.fromBlock) > head) return { jsonrpc: "2.0", id: call.id, result: [] };
      return forward({ ...call, params: [{ ...filter, toBlock: cap(filter.toBlock) }] });
    }
    return forward(call);
  }

  const { port, stop } = await listen(app.fetch, atPort);
  const url = `http://127.0.0.1:${port}`;
  return {
    url,
    controlUrl: `${url}/control`,
    setFaults: (...list: RpcFault[]) => {
      faults.splice(0, faults.length, ...list);
    },
    countCalls: () => calls,
    logRequests,
    stop: async () => {
      await stop();
      agent.destroy();
    },
  };
}

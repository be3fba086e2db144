// A pod's log as RunPod streams it: server-sent events, the host's lines and the container's, and no end.

type Logged = { image: string; env: Record<string, string>; boots: boolean };

export function streamLog({ image, env, boots }: Logged): Response {
  const lines = [
    ["system", `create container ${image}`],
    boots
      ? ["container", `Pod Started with HOST_KEY=${env["CLAWCLOUD_HOST_KEY"] ?? ""}`]
      : ["system", "error creating container: toomanyrequests: You have reached your unauthenticated pull rate limit."],
  ];
  const events = lines.map(
    ([source, line], i) => `id: ${i}\ndata: ${JSON.stringify({ ts: new Date().toISOString(), source, line })}\n\n`,
  );
  const stream = new ReadableStream<Uint8Array>({
    start: (controller) => controller.enqueue(new TextEncoder().encode(events.join(""))),
  });
  return new Response(stream, { headers: { "content-type": "text/event-stream", "cache-control": "no-cache" } });
}

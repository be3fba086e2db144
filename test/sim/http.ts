// What the product's `fetch` gets here: just as much of a response as it reads.

export type Answer = { status: number; headers: Readonly<Record<string, string>>; text: string } | "hangs";

export const answer = (status: number, body: unknown, headers: Readonly<Record<string, string>> = {}): Answer => ({
  status,
  headers: { "content-type": "application/json", ...headers },
  text: body === null ? "" : JSON.stringify(body),
});

export const failure = (status: number, text: string): Answer => ({ status, headers: {}, text });

export const toResponse = ({ status, headers, text }: Exclude<Answer, "hangs">) => ({
  ok: status >= 200 && status < 300,
  status,
  statusText: String(status),
  headers: { get: (name: string) => headers[name.toLowerCase()] ?? null },
  body: null,
  text: async () => text,
});

import { REFUND_KINDS, type RefundKind } from "./refund-life.ts";

/**
 * What travels on the queue: ids only, since a message may be late, doubled or out of order, and the row is the truth.
 * A message whose generation is not the row's any more is dropped.
 */
export type Job =
  /** `seen`: the vendor has shown the machine that boots. A message without it proves nothing (hard case 49). */
  | { kind: "advance"; incarnation: string; generation: number; seen?: true }
  /** `incarnation`: the refund's subject, in the word that a Worker of another version reads. */
  | { kind: "refund"; incarnation: string; of: RefundKind }
  | { kind: "payment"; payment: string; generation: number }
  | { kind: "catalog" }
  /** Of one vendor, its rows behind `after`; without, everything from the start. */
  | { kind: "reap"; vendor?: "vultr" | "runpod"; after?: string };

export const isJob = (body: unknown): body is Job => {
  if (typeof body !== "object" || body === null || !("kind" in body)) return false;
  if (body.kind === "catalog") return true;
  if (body.kind === "reap") {
    const { vendor, after } = body as { vendor?: unknown; after?: unknown };
    if (vendor === undefined) return after === undefined;
    return (vendor === "vultr" || vendor === "runpod") && typeof after === "string";
  }
  const hasGeneration = "generation" in body && typeof body.generation === "number";
  if (body.kind === "payment") return hasGeneration && "payment" in body && typeof body.payment === "string";
  if (!("incarnation" in body) || typeof body.incarnation !== "string") return false;
  if (body.kind === "refund") return "of" in body && REFUND_KINDS.some((kind) => kind === body.of);
  return body.kind === "advance" && hasGeneration;
};

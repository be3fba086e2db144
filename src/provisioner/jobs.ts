/**
 * What travels on the queue: ids only, since a message may be late, doubled or out of order, and the row is the truth.
 * A message whose generation is not the row's any more is dropped.
 */
export type Job =
  | { kind: "advance"; incarnation: string; generation: number }
  | { kind: "refund"; incarnation: string; of: "failed" | "late" }
  | { kind: "catalog" }
  | { kind: "reap" };

export const isJob = (body: unknown): body is Job => {
  if (typeof body !== "object" || body === null || !("kind" in body)) return false;
  if (body.kind === "catalog" || body.kind === "reap") return true;
  if (!("incarnation" in body) || typeof body.incarnation !== "string") return false;
  if (body.kind === "refund") return "of" in body && (body.of === "failed" || body.of === "late");
  return body.kind === "advance" && "generation" in body && typeof body.generation === "number";
};

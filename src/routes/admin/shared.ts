// What all routes of the operators have alike.
import { z } from "@hono/zod-openapi";
import { operatorsOnly } from "../../access/operators.ts";
import { type errorResponses, errorsOf } from "../schemas.ts";

/** Behind an operator's key. */
export const FOR_OPERATORS = { tags: ["operators"], security: [{ adminKey: [] }], middleware: [...operatorsOnly] };

/** What any of these routes may answer beside its own. */
export const adminErrors = <Status extends keyof typeof errorResponses>(...statuses: Status[]) =>
  errorsOf<400 | 401 | 413 | 415 | 503 | Status>(400, 401, 413, 415, 503, ...statuses);

export const jsonOf = <Schema extends z.ZodType>(description: string, schema: Schema) => ({
  description,
  content: { "application/json": { schema } },
});

export const bodyOf = <Schema extends z.ZodType>(schema: Schema) => ({
  required: true,
  content: { "application/json": { schema } },
});

/** A page's size in a query. */
export const limitQuery = (max: number, fallback: number) =>
  z
    .string()
    .regex(/^\d{1,4}$/, "must be a number")
    .transform(Number)
    .pipe(z.number().min(1, "must be at least 1").max(max, `must be at most ${max}`))
    .optional()
    .transform((value) => value ?? fallback)
    .openapi({ type: "integer", description: `1 to ${max}, default ${fallback}` });

export const reasonSchema = z.string().trim().min(1).max(300);

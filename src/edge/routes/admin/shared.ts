// What all routes of the operators have alike.
import { z } from "@hono/zod-openapi";
import { clientAddress } from "../../../model/client-name.ts";
import { operatorsOnly } from "../../access/operators.ts";
import { type ErrorStatus, errorsOf } from "../schemas.ts";

/** Behind an operator's key. */
export const FOR_OPERATORS = { tags: ["operators"], security: [{ adminKey: [] }], middleware: [...operatorsOnly] };

/** What any of these routes may answer beside its own. */
export const adminErrors = <Status extends ErrorStatus>(...statuses: Status[]) =>
  errorsOf<400 | 401 | 413 | 415 | Status>(400, 401, 413, 415, ...statuses);

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

const CROSS_SITE = /#cross-site$/;

/**
 * What names a client: an address, a /64 as the list of bans has it, another Worker's zone, each with `#cross-site` for
 * what web pages made its browsers send. Resolves to the name of its guard.
 */
export const clientSchema = z
  .string()
  .max(300)
  .transform((text, context) => {
    const suffix = CROSS_SITE.exec(text)?.[0] ?? "";
    const name = text.replace(CROSS_SITE, "");
    if (name === "unknown" || /^worker:[a-z0-9.-]+$/.test(name)) return name + suffix;
    const plain = name.replace(/\/64$/, "");
    const isAddress = z.ipv4().safeParse(name).success || z.ipv6().safeParse(plain).success;
    if (isAddress) return clientAddress(plain) + suffix;
    context.addIssue("must be an IP address, or worker: and a zone");
    return z.NEVER;
  })
  .openapi({
    type: "string",
    pattern: "^(unknown|worker:[a-z0-9.-]+|[0-9a-fA-F:.]+(/64)?)(#cross-site)?$",
    example: "203.0.113.7",
  });

/** The same without the suffix: both guards of a client are banned together. */
export const wholeClientSchema = clientSchema.transform((name) => name.replace(CROSS_SITE, ""));

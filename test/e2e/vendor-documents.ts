// Holds recorded traffic against an OpenAPI document.
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { Ajv2020, type ValidateFunction } from "ajv/dist/2020.js";
import addFormats from "ajv-formats";
import type { Exchange } from "../world/vendor-server.ts";

type Content = Record<string, { schema?: object }>;
type Parameter = { $ref?: string; name: string; in: string; required?: boolean };
type Operation = {
  parameters?: Parameter[];
  requestBody?: { required?: boolean; content: Content };
  responses: Record<string, { $ref?: string; content?: Content }>;
};
type Document = { paths: Record<string, Record<string, Operation>> };

/** A validator of OpenAPI 3.1 schemas, formats included. */
export function createAjv(options: { allErrors: boolean }): Ajv2020 {
  const ajv = new Ajv2020({ strict: false, ...options });
  // The package's types describe a module that its default export is not.
  (addFormats as unknown as (target: Ajv2020) => void)(ajv);
  return ajv;
}

/** Checks each exchange: known operation, query names, request body, status, content type, answer's body. */
export async function checkJournal(file: URL, prefix: string, journal: readonly Exchange[]) {
  const document = JSON.parse(readFileSync(fileURLToPath(file.href), "utf8")) as Document;
  const ajv = createAjv({ allErrors: true });
  ajv.addSchema(document, "doc");
  const compiled = new Map<string, ValidateFunction>();
  const problems: string[] = [];
  const operations = new Set<string>();

  const validate = (pointer: string, value: unknown, where: string) => {
    let check = compiled.get(pointer);
    if (check === undefined) {
      check = ajv.compile({ $ref: `doc#${pointer}` });
      compiled.set(pointer, check);
    }
    if (!check(value)) problems.push(`${where}: ${ajv.errorsText(check.errors)}`);
  };
  const resolve = <T extends { $ref?: string }>(value: T, pointer: string): { value: T; pointer: string } => {
    if (value.$ref === undefined) return { value, pointer };
    const target = value.$ref.slice(1);
    const found = target
      .split("/")
      .slice(1)
      .reduce<unknown>((node, part) => (node as Record<string, unknown>)[fromPointer(part)], document);
    return resolve(found as T, target);
  };

  for (const exchange of journal) {
    const url = new URL(exchange.path, "http://vendor");
    const pathname = url.pathname.slice(prefix.length);
    const path = Object.keys(document.paths).find((template) => matches(template, pathname));
    const method = exchange.method.toLowerCase();
    const operation = path === undefined ? undefined : document.paths[path]?.[method];
    const where = `${exchange.method} ${path ?? pathname} -> ${exchange.status}`;
    if (path === undefined || operation === undefined) {
      problems.push(`${where}: the document has no such operation`);
      continue;
    }
    operations.add(`${exchange.method} ${path}`);
    const base = `/paths/${toPointer(path)}/${method}`;
    const known = (operation.parameters ?? []).map(
      (parameter, i) => resolve(parameter, `${base}/parameters/${i}`).value,
    );
    for (const name of url.searchParams.keys()) {
      if (!known.some((parameter) => parameter.in === "query" && parameter.name === name)) {
        problems.push(`${where}: unknown query parameter ${name}`);
      }
    }
    if (exchange.requestBody !== null) {
      if (operation.requestBody === undefined) problems.push(`${where}: the document knows no request body`);
      else validate(`${base}/requestBody/content/application~1json/schema`, exchange.requestBody, `${where} request`);
    } else if (operation.requestBody?.required) problems.push(`${where}: the request body is missing`);

    const status = String(exchange.status) in operation.responses ? String(exchange.status) : "default";
    const response = operation.responses[status];
    if (response === undefined) {
      problems.push(`${where}: the document has no such status`);
      continue;
    }
    const { value, pointer } = resolve(response, `${base}/responses/${toPointer(status)}`);
    const types = Object.keys(value.content ?? {});
    if (exchange.responseBody === null) continue;
    const type = types.find((one) => exchange.contentType?.startsWith(one));
    if (type === undefined)
      problems.push(`${where}: content type ${exchange.contentType}, documented: ${types.join(", ")}`);
    else validate(`${pointer}/content/${toPointer(type)}/schema`, exchange.responseBody, `${where} answer`);
  }
  return { problems: [...new Set(problems)], operations: [...operations] };
}

const toPointer = (part: string) => encodeURIComponent(part.replaceAll("~", "~0").replaceAll("/", "~1"));
const fromPointer = (part: string) => decodeURIComponent(part).replaceAll("~1", "/").replaceAll("~0", "~");
const matches = (template: string, pathname: string) =>
  new RegExp(`^${template.replace(/\{[^}]+\}/g, "[^/]+")}$`).test(pathname);

// An operator at work: calls with a key, from an address of its own for each, since the limit is not what is tested here.
import type { Deployment } from "../../../deployment.ts";

let calls = 0;

export function operator(world: Deployment, key: string) {
  return async <Body = Record<string, unknown>>(method: string, path: string, body?: object) => {
    const answer = await world.request(path, {
      method,
      headers: {
        "x-api-key": key,
        "cf-connecting-ip": `10.${++calls >> 8}.${calls & 255}.1`,
        ...(body === undefined ? {} : { "content-type": "application/json" }),
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    return { status: answer.status, headers: answer.headers, body: (await answer.json()) as Body & { code?: string } };
  };
}
export type Operator = ReturnType<typeof operator>;

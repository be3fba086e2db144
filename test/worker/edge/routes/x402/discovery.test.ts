import { expect, test } from "vitest";
import { operator } from "../../../chain.ts";
import { deploy } from "../../../deployment.ts";

type Item = { resource: string; method: string; accepts: Record<string, unknown>[]; extensions: { bazaar: object } };
type Document = { version: number; x402Version: number; resources: string[]; items: Item[] };

test("/.well-known/x402 lists both paid routes, machines by tier, with the contract's prices", async () => {
  const world = await deploy();
  await world.sweep();
  const answer = await world.request("/.well-known/x402");
  expect(answer.status).toBe(200);
  const document = (await answer.json()) as Document;
  expect(document).toMatchObject({
    version: 1,
    x402Version: 2,
    resources: ["https://api.example/x402/vm-credentials", "https://api.example/x402/purchase-compute"],
  });
  const [credentials, machines] = document.items;
  expect(credentials?.accepts).toMatchObject([
    { scheme: "exact", network: "eip155:8453", amount: "10000", payTo: operator.address, maxTimeoutSeconds: 120 },
  ]);
  expect(machines?.accepts).toHaveLength(8);
  expect(machines?.accepts[0]).toMatchObject({ amount: "500000", maxTimeoutSeconds: 1_200 });
  expect(machines?.accepts[4]).toMatchObject({ amount: "18000000", maxTimeoutSeconds: 1_800 });
  expect(machines?.extensions.bazaar).toMatchObject({ info: { input: { method: "POST", bodyType: "json" } } });
});

test("a deployment without a wallet to pay to sells nothing over x402, and says so", async () => {
  const world = await deploy({ edge: { X402_PAY_TO: undefined as never } });
  for (const path of ["/.well-known/x402", "/x402/vm-credentials?tokenId=1"]) {
    const answer = await world.request(path);
    expect(answer.status).toBe(503);
    expect(await answer.json()).toMatchObject({ code: "payments_off" });
  }
});

import { expect, test } from "vitest";
import { buy, type Credentials, fixedHeaders } from "../world/agent.ts";
import { agent, chain, deploy } from "./deployment.ts";

test("a purchase becomes a running machine whose credentials its owner gets", async () => {
  const world = await deploy();
  const { tokenId, txHash } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  await world.drain();

  const status = (await (await world.request(`/status/${tokenId}`)).json()) as Record<string, unknown>;
  expect(status).toMatchObject({ status: "running", tier: 0, type: "gcp", purchase: { txHash } });
  const response = await world.request(`/credentials/${tokenId}`, { headers: await fixedHeaders(agent(0), tokenId) });
  expect(response.status).toBe(200);
  const body = (await response.json()) as Credentials;
  expect(body.privateKey).toBe(body.ssh.privateKey);
  expect(body.ssh.privateKey).toContain("OPENSSH PRIVATE KEY");
});

// Paying for a token's credentials: what is quoted, what an answer has, who can read it, and who pays for nothing.
import {
  type Abi,
  type Address,
  concatHex,
  encodeAbiParameters,
  encodeFunctionData,
  getAddress,
  type Hex,
  parseAbi,
  parseAbiParameters,
} from "viem";
import { beforeEach, expect, test } from "vitest";
import { USDC_ADDRESS } from "../../../../world/addresses.ts";
import { fixedHeaders, freshHeaders, transfer } from "../../../../world/agent.ts";
import artifacts from "../../../../world/contracts/artifacts.json";
import { paymentHeaderV1, readQuote } from "../../../../world/payer.ts";
import { agent, chain, deployer, operator } from "../../../chain.ts";
import { buyAndRun, type Deployment, deploy } from "../../../deployment.ts";
import { addFault } from "../../../faults.ts";
import { ask, decodeReceipt, isHash, PRICE, pathOf, prepare, quote, unseal, v2 } from "./paid-credentials.ts";
import { signFor, usdcOf } from "./till.ts";

const API = "https://api.example";
const OWNER = 0;
const MALLORY = 1;

let world: Deployment;
let tokenId: number;
beforeEach(async () => {
  world = await deploy();
  tokenId = await buyAndRun(world, OWNER);
});

const ownersCredentials = async () => {
  const answer = await world.request(`/credentials/${tokenId}`, { headers: await fixedHeaders(agent(OWNER), tokenId) });
  return { status: answer.status, body: (await answer.json()) as Record<string, unknown> };
};

test("without a payment it asks for one, in both versions, and tells a browser's page about it", async () => {
  const answer = await world.request(pathOf(tokenId), { headers: { origin: "https://agent.example" } });
  expect(answer.status).toBe(402);
  expect(answer.headers.get("cache-control")).toBe("no-store");
  const demanded = {
    scheme: "exact",
    payTo: operator.address,
    asset: USDC_ADDRESS,
    maxTimeoutSeconds: 120,
    extra: { name: "USD Coin", version: "2" },
  };
  const quoted = readQuote(answer);
  expect(quoted).toMatchObject({
    x402Version: 2,
    resource: { url: `${API}${pathOf(tokenId)}`, mimeType: "application/json" },
    extensions: {
      bazaar: { info: { input: { type: "http", method: "GET", queryParams: { tokenId: "42" } } } },
      "payment-identifier": { info: { required: false } },
    },
  });
  expect(quoted.accepts).toEqual([{ ...demanded, network: "eip155:8453", amount: "10000" }]);
  expect(await answer.json()).toMatchObject({
    x402Version: 1,
    code: "payment_required",
    accepts: [
      {
        ...demanded,
        network: "base",
        maxAmountRequired: "10000",
        resource: `${API}${pathOf(tokenId)}`,
        outputSchema: { input: { type: "http", method: "GET", discoverable: true } },
      },
    ],
  });
  const exposed = answer.headers.get("access-control-expose-headers");
  for (const name of ["PAYMENT-REQUIRED", "PAYMENT-RESPONSE", "X-PAYMENT-RESPONSE"]) expect(exposed).toContain(name);
  const preflight = await world.request(pathOf(tokenId), {
    method: "OPTIONS",
    headers: {
      origin: "https://agent.example",
      "access-control-request-method": "GET",
      "access-control-request-headers": "payment-signature,x-payment,access-control-expose-headers",
    },
  });
  expect(preflight.status).toBe(204);
  const allowed = preflight.headers.get("access-control-allow-headers");
  for (const name of ["PAYMENT-SIGNATURE", "X-PAYMENT", "Access-Control-Expose-Headers", "Authorization"]) {
    expect(allowed).toContain(name);
  }
});

test("a payment of version 2 buys the credentials, the key sealed to the payer", async () => {
  const [payerBefore, oursBefore] = [await usdcOf(agent(OWNER).address), await usdcOf(operator.address)];
  const { headers } = await prepare(world, tokenId, OWNER);
  const answer = await ask(world, tokenId, headers);
  expect(answer.status, answer.text).toBe(200);
  expect(await usdcOf(agent(OWNER).address)).toBe(payerBefore - PRICE);
  expect(await usdcOf(operator.address)).toBe(oursBefore + PRICE);

  const receipt = decodeReceipt(answer.headers.get("payment-response"));
  const { transaction } = receipt as { transaction: Hex };
  expect(isHash(transaction)).toBe(true);
  expect(receipt).toEqual({ success: true, transaction, payer: agent(OWNER).address, network: "eip155:8453" });
  expect(decodeReceipt(answer.headers.get("x-payment-response"))).toEqual({ ...receipt, network: "base" });
  expect((await chain.reader.getTransactionReceipt({ hash: transaction })).status).toBe("success");
  expect(answer.headers.get("cache-control")).toBe("no-store");

  const { sealedPrivateKey, payment, ...rest } = answer.body;
  expect(payment).toEqual({ purchaseId: expect.stringMatching(/^[0-9a-f]{32}$/), amount: "0.01", transaction });
  expect(rest).toMatchObject({
    tokenId: String(tokenId),
    privateKey: null,
    ssh: { privateKey: null, deliveredAt: null },
  });
  expect(answer.text).not.toContain("PRIVATE KEY");
  const { body: own } = await ownersCredentials();
  expect(unseal(OWNER, sealedPrivateKey)).toBe(own["privateKey"]);
  expect(own["sealedPrivateKey"]).toBe(sealedPrivateKey);
  const { privateKey, sealedPrivateKey: _, ssh, ...ownRest } = own as { [K in string]: unknown } & { ssh: object };
  expect(rest).toEqual({ ...ownRest, privateKey: null, ssh: { ...ssh, privateKey: null, deliveredAt: null } });

  const [row] = await world.payments();
  expect(row).toMatchObject({ state: "settled", step: "close", settle_tx: transaction, served_at: expect.any(Number) });
  const told = await (await world.request(`/x402/purchases/${payment.purchaseId}`)).json();
  expect(told).toMatchObject({ kind: "credentials", status: "settled", charged: true, tokenId: String(tokenId) });
});

test("a payment of version 1 buys the same", async () => {
  const before = await usdcOf(agent(OWNER).address);
  const requirement = await quote(world, tokenId);
  const signed = await signFor(agent(OWNER), requirement);
  const answer = await ask(world, tokenId, { "x-payment": paymentHeaderV1(requirement, signed) });
  expect(answer.status, answer.text).toBe(200);
  expect(await usdcOf(agent(OWNER).address)).toBe(before - PRICE);
  expect(decodeReceipt(answer.headers.get("x-payment-response"))).toMatchObject({ success: true, network: "base" });
  expect(unseal(OWNER, answer.body["sealedPrivateKey"])).toContain("PRIVATE KEY");
});

test("with the owner's signature beside it the body is that of /credentials, and counts as the delivery", async () => {
  const { headers } = await prepare(world, tokenId, OWNER);
  const answer = await ask(world, tokenId, { ...headers, ...(await fixedHeaders(agent(OWNER), tokenId)) });
  expect(answer.status, answer.text).toBe(200);
  const { payment, ...body } = answer.body;
  expect([body["sealedPrivateKey"], payment.amount]).toEqual([null, "0.01"]);
  expect(body["privateKey"]).toContain("PRIVATE KEY");
  const again = await world.request(`/credentials/${tokenId}`, {
    headers: await freshHeaders(API, agent(OWNER), tokenId),
  });
  expect(body).toEqual(await again.json());
  // The fixed form has had its one key.
  expect((await ownersCredentials()).body["privateKey"]).toBeNull();
});

test("somebody else's signature beside the owner's payment is refused before anything is charged", async () => {
  const before = await usdcOf(agent(OWNER).address);
  const { headers } = await prepare(world, tokenId, OWNER);
  const strangers = await ask(world, tokenId, { ...headers, ...(await fixedHeaders(agent(MALLORY), tokenId)) });
  expect([strangers.status, strangers.body["code"]]).toEqual([403, "not_owner"]);
  const malformed = await ask(world, tokenId, { ...headers, authorization: "Bearer 0x12" });
  expect([malformed.status, malformed.body["code"]]).toEqual([401, "signature_invalid"]);
  // The owner signs for a payment that somebody else makes.
  const paid = await prepare(world, tokenId, MALLORY);
  const others = await ask(world, tokenId, { ...paid.headers, ...(await fixedHeaders(agent(OWNER), tokenId)) });
  expect([others.status, others.body["code"]]).toEqual([403, "not_owner"]);
  expect(await world.payments()).toEqual([]);
  expect(await usdcOf(agent(OWNER).address)).toBe(before);
});

test("hard case 1: a payment that Mallory's site had signed and forwards opens nothing for her, and takes nothing from its owner", async () => {
  // Her quote names our wallet and price; the authorization that the owner signs names neither URL nor token.
  const { headers } = await prepare(world, tokenId, OWNER);
  const relayed = await ask(world, tokenId, headers);
  expect(relayed.status).toBe(200);
  expect(relayed.body).toMatchObject({ privateKey: null, ssh: { privateKey: null, deliveredAt: null } });
  expect(relayed.text).not.toContain("PRIVATE KEY");
  expect(() => unseal(MALLORY, relayed.body["sealedPrivateKey"])).toThrow();
  // Nor with a signature of her own beside it.
  const hers = await ask(world, tokenId, { ...headers, ...(await freshHeaders(API, agent(MALLORY), tokenId)) });
  expect(hers.status).toBe(403);
  // The delivery is not spent: by his signature he gets the key in clear, as if nobody had paid.
  expect(await world.vm(tokenId)).toMatchObject({
    delivered_at: null,
    delivered_to: null,
    acknowledged_at: null,
    ssh_private_key: expect.any(String),
  });
  expect((await ownersCredentials()).body["privateKey"]).toContain("PRIVATE KEY");
  // Nor is it after the grace, when our copy goes: his own is sealed to him and comes by his signature alone.
  const other = await buyAndRun(world, OWNER);
  expect((await ask(world, other, (await prepare(world, other, OWNER)).headers)).status).toBe(200);
  await world.sweep(Date.now() + 1_000 * (world.edge.KEY_GRACE_SECONDS + 60));
  expect(await world.vm(other)).toMatchObject({ ssh_private_key: null, delivered_at: null });
  const late = await world.request(`/credentials/${other}`, { headers: await fixedHeaders(agent(OWNER), other) });
  const body = (await late.json()) as { privateKey: null; sealedPrivateKey: string };
  expect([body.privateKey, unseal(OWNER, body.sealedPrivateKey)]).toEqual([
    null,
    expect.stringContaining("PRIVATE KEY"),
  ]);
});

test("hard case 58: the same payment gets the same sealed key again, and nobody who replays it any other", async () => {
  const { headers } = await prepare(world, tokenId, OWNER);
  const first = await ask(world, tokenId, headers);
  const after = await usdcOf(agent(OWNER).address);
  const rows = await world.payments();
  // An hour later: signature and nonce are public since it was settled.
  for (let replay = 0; replay < 2; replay++) {
    const replayed = await ask(world, tokenId, headers);
    expect(replayed.status).toBe(200);
    expect(replayed.body).toEqual(first.body);
    expect(replayed.text).not.toContain("PRIVATE KEY");
  }
  expect(await world.payments()).toEqual(rows);
  // Its owner is told in clear by his signature.
  const signed = await ask(world, tokenId, { ...headers, ...(await fixedHeaders(agent(OWNER), tokenId)) });
  expect([signed.status, signed.body["payment"]]).toEqual([200, first.body["payment"]]);
  expect(signed.body["privateKey"]).toContain("PRIVATE KEY");
  // Until he acknowledges.
  const path = `/credentials/${tokenId}/ack`;
  const ack = await world.request(path, {
    method: "POST",
    headers: await freshHeaders(API, agent(OWNER), tokenId, "/ack"),
  });
  expect(ack.status).toBe(200);
  const { purchaseId, transaction } = first.body["payment"];
  const last = await ask(world, tokenId, headers);
  expect(last.status).toBe(409);
  expect(last.body).toEqual({
    code: "payment_used",
    error: expect.stringContaining("This payment was used before."),
    requestId: expect.any(String),
    charged: "yes",
    details: [{ purchaseId, state: "settled", transaction }],
  });
  expect(await usdcOf(agent(OWNER).address)).toBe(after);
});

test("nobody pays for 202, 403 or 404", async () => {
  const balances = async () => [await usdcOf(agent(OWNER).address), await usdcOf(agent(MALLORY).address)];
  await addFault("vultr", { call: "create", kind: "sold_out" });
  const { tokenId: waiting } = await world.buy(OWNER);
  await world.scan();
  const before = await balances();
  const refused = async (token: number, index: number) => {
    const { headers } = await prepare(world, token, index);
    const answer = await ask(world, token, headers);
    expect(answer.headers.get("payment-response")).toBeNull();
    return [answer.status, answer.body["code"] ?? answer.body["status"]];
  };
  expect(await refused(waiting, OWNER)).toEqual([202, "provisioning"]);
  expect(await refused(tokenId, MALLORY)).toEqual([403, "not_owner"]);
  expect(await refused(999_999, OWNER)).toEqual([404, "token_not_found"]);
  await world.sql.prepare("UPDATE vms SET status = 'terminated' WHERE token_id = ?").bind(tokenId).run();
  expect(await refused(tokenId, OWNER)).toEqual([404, "vm_terminated"]);
  expect(await balances()).toEqual(before);
  expect(await world.payments()).toEqual([]);
});

test("a smart wallet's payment has no public key: it needs the owner's signature as well", async () => {
  const { address: wallet } = await deployWallet(agent(2).address);
  await transfer(chain, agent(OWNER), wallet, tokenId);
  await chain.wallet(agent(OWNER)).writeContract({
    address: USDC_ADDRESS,
    abi: parseAbi(["function transfer(address to, uint256 amount) returns (bool)"]),
    functionName: "transfer",
    args: [wallet, 5n * PRICE],
  });
  await world.scan();
  await chain.mine(1);
  const before = await usdcOf(wallet);
  const requirement = await quote(world, tokenId);
  const headers = v2(requirement, await signFor(agent(2), requirement, { from: wallet }));
  const alone = await ask(world, tokenId, headers);
  expect([alone.status, alone.body["code"]]).toEqual([401, "signature_missing"]);
  expect(await world.payments()).toEqual([]);
  const both = await ask(world, tokenId, { ...headers, ...(await fixedHeaders(agent(2), tokenId)) });
  expect(both.status, both.text).toBe(200);
  expect(both.body).toMatchObject({ privateKey: expect.stringContaining("PRIVATE KEY"), sealedPrivateKey: null });
  expect(await usdcOf(wallet)).toBe(before - PRICE);
  // Another's signature in the wallet's name.
  const strangers = v2(requirement, await signFor(agent(3), requirement, { from: wallet }));
  expect((await ask(world, tokenId, strangers)).body).toMatchObject({
    code: "payment_invalid",
    error: "The payment's signature is not its payer's.",
  });
});

test("the payment of a smart wallet that is not deployed is told to deploy it first: the coin takes nothing from it", async () => {
  const requirement = await quote(world, tokenId);
  const wallet: Address = `0x${"5a".repeat(20)}`;
  const signed = await signFor(agent(2), requirement, { from: wallet });
  // A factory's call around the keeper's signature, as ERC-6492 has it.
  const counterfactual = concatHex([
    encodeAbiParameters(parseAbiParameters("address, bytes, bytes"), [deployer.address, "0x12", signed.signature]),
    `0x${"6492".repeat(16)}`,
  ]);
  const told = async (signature: Hex) =>
    (await ask(world, tokenId, v2(requirement, { ...signed, signature }))).body["error"] as string;
  expect(await told(counterfactual)).toBe(
    `There is no contract at ${getAddress(wallet)} on this chain: deploy the smart wallet first.`,
  );
  // Of a plain account's length nobody can say which of the two it is.
  expect(await told(signed.signature)).toBe(
    "The payment's signature is not its payer's. A smart wallet has to be deployed first.",
  );
  expect(await world.payments()).toEqual([]);
});

async function deployWallet(keeper: Address): Promise<{ address: Address }> {
  const clients = chain.wallet(deployer);
  const abi = artifacts.SmartWalletFactory.abi as Abi;
  const created = await clients.deployContract({ abi, bytecode: artifacts.SmartWalletFactory.bytecode as Hex });
  const factory = (await chain.reader.waitForTransactionReceipt({ hash: created })).contractAddress ?? "0x";
  const data = encodeFunctionData({ abi, functionName: "deploy", args: [keeper] });
  const hash = await clients.sendTransaction({ to: factory, data });
  await chain.reader.waitForTransactionReceipt({ hash });
  await chain.mine(1);
  const of = { address: factory, abi, functionName: "addressOf", args: [keeper] } as const;
  return { address: (await chain.reader.readContract(of)) as Address };
}

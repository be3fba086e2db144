// The Worker that the tests run in: both Workers' objects; tests call the handlers themselves.
export { IpGuard } from "../../durable-objects/ip-guard.ts";
export { LogBook } from "../../durable-objects/log-book.ts";
export { OperatorWallet } from "../../durable-objects/operator-wallet.ts";
export { VendorGate } from "../../durable-objects/vendor-gate.ts";

export default {
  fetch: () => new Response("tests call the handlers themselves", { status: 404 }),
} satisfies ExportedHandler;

// What the simulated vendors tell of their accounts: money, rights, limits. Tests change the values that stand here.
import type { VendorServer } from "./vendor-server.ts";

export type VultrAccount = { balance: number; pendingCharges: number; acls: string[] };
export type RunpodAccount = { balance: number; spendPerHour: number; mayWrite: boolean };

/** As the document's example has it: credit is below zero. */
export function serveVultrAccount(server: VendorServer): VultrAccount {
  const account = {
    balance: -250,
    pendingCharges: 12.5,
    acls: ["subscriptions_view", "subscriptions", "billing", "support", "provisioning", "firewall"],
  };
  server.app.get("/v2/account", (c) => {
    const failed = () => c.json({ error: "Internal server error", status: 500 }, 500);
    return server.withFaults(c, "account", { rateLimited: failed, failed }, () =>
      c.json({
        account: {
          name: "Local World",
          email: "operator@example.com",
          acls: account.acls,
          balance: account.balance,
          pending_charges: account.pendingCharges,
          last_payment_date: "2026-10-10T01:56:20+00:00",
          last_payment_amount: -100,
        },
      }),
    );
  });
  return account;
}

/** The balance by version 2 as RunPod's reference has it since November 2026, and by GraphQL. */
export function serveRunpodAccount(server: VendorServer): RunpodAccount {
  const account = { balance: 435.85, spendPerHour: 0.34, mayWrite: true };
  const problem = (status: 403 | 500, title: string, detail: string) =>
    Response.json({ title, status, detail }, { status, headers: { "content-type": "application/problem+json" } });
  // A key that only reads is refused whatever it asks to change, before anything is looked up.
  server.app.use("/v2/*", async (c, next) =>
    account.mayWrite || c.req.method === "GET" ? next() : problem(403, "Forbidden", "access denied"),
  );
  server.app.get("/v2/billing/balance", (c) => {
    const failed = () => problem(500, "Internal Server Error", "internal error");
    return server.withFaults(c, "account", { rateLimited: failed, failed }, () =>
      c.json({ balanceAmount: account.balance, billingMode: "PREPAID" }),
    );
  });
  server.app.post("/graphql", (c) =>
    c.json({
      data: {
        myself: { clientBalance: account.balance, currentSpendPerHr: account.spendPerHour, spendLimit: 80 },
      },
    }),
  );
  return account;
}

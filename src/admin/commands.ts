// The commands that are calls to the operators' API.
import { type Command, InvalidArgumentError } from "commander";
import { call, callJson, callList, connect, PAUSE_MS, type Query, showOne, showRows } from "./api.ts";

export const DEFAULT_URL = "https://api.clawcloud.co";

/** Adds them to the program; each takes `--url`. */
export function addApiCommands(program: Command): void {
  program.option("--url <url>", "base URL of the API", process.env["CLAWCLOUD_URL"] ?? DEFAULT_URL);
  const api = (first = false) => connect({ url: program.opts<{ url: string }>().url, first });
  const list = async (path: string, field: string, query: Query = {}) =>
    showRows(await callList(api(), path, field, query));
  const one = async (method: string, path: string, body?: object) => showOne(await callJson(api(), method, path, body));
  const part = encodeURIComponent;

  const keys = program.command("keys").description("Operators' keys.");
  keys.command("list").action(() => list("/admin/keys", "keys"));
  keys
    .command("create <name>")
    .description("A new key, shown once.")
    .option("--first", "with ADMIN_API_KEY, from the environment or .secrets/edge.json, while there is no key")
    .action(async (name: string, { first = false }: { first?: boolean }) =>
      showOne(await callJson(api(first), "POST", "/admin/keys", { name })),
    );
  keys.command("revoke <id>").action((id: string) => one("DELETE", `/admin/keys/${part(id)}`));

  const bans = program.command("bans").description("Banned addresses.");
  bans.command("list").action(() => list("/admin/bans", "bans"));
  bans
    .command("add <address>")
    .description("Bans it; its row with #cross-site is for what web pages make its browsers send.")
    .requiredOption("--reason <text>")
    .option("--seconds <number>", "how long", "3600")
    .action((address: string, { reason, seconds }: { reason: string; seconds: string }) =>
      one("POST", "/admin/bans", { address, reason, durationSeconds: Number(seconds) }),
    );
  bans
    .command("lift <address>")
    .description("Ends its bans, of cross-site requests as well; exits 1 where it was not banned.")
    .action(async (address: string) => {
      const lifted = await callJson(api(), "DELETE", `/admin/bans/${part(address)}`);
      showOne(lifted);
      if (lifted["wasBanned"] === true) return;
      console.error(`${address} was not banned.`);
      process.exitCode = 1;
    });

  const failed = program.command("failed").description("Purchases that ended without a machine.");
  failed
    .command("list")
    .option("--settled", "also those that were settled")
    .action(({ settled }: { settled?: boolean }) =>
      list("/admin/failed-provisionings", "failures", { settled: settled ? "true" : undefined }),
    );
  failed.command("retry <id>").action((id: string) => one("POST", `/admin/failed-provisionings/${part(id)}/retry`));

  const refunds = program.command("refunds").description("What is owed for purchases and for payments by x402.");
  refunds
    .command("list")
    .option("--state <state>", "recorded, waiting, due, held, paying, paid or cancelled")
    .option("--limit <number>", "the newest so many")
    .action((query: Query) => list("/admin/refunds", "refunds", query));
  const decision = (name: string, description: string) =>
    refunds
      .command(`${name} <id>`)
      .description(`${description} The id is a token's, or, of kind payment, a payment's.`)
      .requiredOption("--reason <text>")
      .option("--kind <kind>", "failed, late or payment", "failed");
  const decide = (name: string, id: string, kind: string, body: object) =>
    one("POST", `/admin/refunds/${part(id)}/${part(kind)}/${name}`, body);
  decision("pay", "Pay one that is recorded, waiting or held.")
    .option("--to <address>", "the token's owner, where that is not the buyer")
    .action((id: string, { kind, reason, to }: { kind: string; reason: string; to?: string }) =>
      decide("pay", id, kind, { reason, ...(to === undefined ? {} : { payTo: to }) }),
    );
  decision("settle", "Note that one was paid by hand.")
    .requiredOption("--tx <hash>")
    .action((id: string, { kind, reason, tx }: { kind: string; reason: string; tx: string }) =>
      decide("settle", id, kind, { reason, txHash: tx }),
    );
  decision("cancel", "Owe nothing after all.").action(
    (id: string, { kind, reason }: { kind: string; reason: string }) => decide("cancel", id, kind, { reason }),
  );

  const payments = program.command("payments").description("Payments by x402.");
  payments
    .command("list")
    .option(
      "--state <state>",
      "claimed, authorized, settling, settled, releasing, released, refund_due, refunded or held",
    )
    .option("--limit <number>", "the newest so many")
    .action((query: Query) => list("/admin/payments", "payments", query));
  payments
    .command("held")
    .description("Tokens in stock: bought for orders that came to nothing; their age and value.")
    .action(() => one("GET", "/admin/payments/held"));
  payments
    .command("reconcile")
    .description("Holds the books against the chain's final history; exits 1 where they differ.")
    .option(
      "--from <block>",
      "the first block; without it the last 10,000, or as many as the nodes give at once",
      blockOf,
    )
    .option("--to <block>", "the last block; without it the last final one", blockOf)
    .action(async ({ from, to }: { from?: number; to?: number }) => {
      // It brings viem along: more than all the rest takes to load.
      const { reconcileAll } = await import("./reconcile.ts");
      const { books, differs } = await reconcileAll(api(), from, to);
      showOne(books);
      if (differs) process.exitCode = 1;
    });
  const paymentDecision = (name: string, description: string) =>
    payments.command(`${name} <id>`).description(description).requiredOption("--reason <text>");
  const decidePayment = (name: string, id: string, body: object) =>
    one("POST", `/admin/payments/${part(id)}/${name}`, body);
  paymentDecision("refund", "Pay one back that is held, or whose refund is.").action(
    (id: string, body: { reason: string }) => decidePayment("refund", id, body),
  );
  paymentDecision("settle", "Note that one was paid back by hand.")
    .requiredOption("--tx <hash>")
    .action((id: string, { reason, tx }: { reason: string; tx: string }) =>
      decidePayment("settle", id, { reason, txHash: tx }),
    );
  paymentDecision("forgive", "Let a payer order again whose money was gone at the capture.").action(
    (id: string, body: { reason: string }) => decidePayment("forgive", id, body),
  );

  const vms = program.command("vms").description("Machines.");
  vms
    .command("list")
    .option("--status <status>", "provisioning, running, expired, terminated or failed")
    .option("--limit <number>", "the newest so many")
    .action((query: Query) => list("/admin/vms", "vms", query));
  vms
    .command("terminate <tokenId>")
    .description("End a machine, whatever its paid time says.")
    .requiredOption("--reason <text>")
    .action((tokenId: string, body: { reason: string }) => one("POST", `/admin/vms/${part(tokenId)}/terminate`, body));

  program
    .command("events")
    .description("Security events, newest first.")
    .option("--event <name>", "rate_limited, injection_attempt, access_denied, ip_banned, admin_call, …")
    .option("--address <address>")
    .option("--since <time>", "ISO 8601")
    .option("--until <time>", "ISO 8601")
    .option("--limit <number>")
    .action((query: Query) => list("/admin/security-events", "events", query));

  const logs = program.command("logs").description("Log files.");
  logs.command("list").action(() => list("/admin/logs", "files"));
  logs
    .command("get <stream>")
    .description("Prints combined, error or security.")
    .option("--file <number>", "0 is being written, 4 the oldest", "0")
    .action(async (stream: string, { file }: { file: string }) => {
      process.stdout.write(await (await call(api(), "GET", `/admin/logs/${part(stream)}?file=${part(file)}`)).text());
    });

  const dataKeys = program.command("data-keys").description("Keys that stored secrets are sealed under.");
  dataKeys.command("list").action(() => list("/admin/data-keys", "keys"));
  dataKeys
    .command("reencrypt")
    .description("Brings every stored secret under the current key. May be stopped and run again.")
    .action(async () => {
      const sum = { reencrypted: 0, skipped: 0, unreadable: 0, remaining: 0 };
      let after: unknown;
      do {
        const batch = await callJson(api(), "POST", "/admin/data-keys/reencrypt", after === undefined ? {} : { after });
        for (const count of ["reencrypted", "skipped", "unreadable"] as const) sum[count] += Number(batch[count]);
        sum.remaining = Number(batch["remaining"]);
        after = batch["next"] ?? undefined;
        console.error(`${sum.reencrypted} done, ${sum.remaining} to go`);
        if (after !== undefined) await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
      } while (after !== undefined);
      showOne(sum);
    });

  program
    .command("scan <fromBlock> <toBlock>")
    .description("Reads a range of blocks again.")
    .action(async (fromBlock: string, toBlock: string) => {
      const sum = { fromBlock: Number(fromBlock), toBlock: Number(toBlock), queued: 0 };
      for (let next: unknown = sum.fromBlock; next !== null; ) {
        const read = await callJson(api(), "POST", "/admin/scan", {
          fromBlock: Number(next),
          toBlock: Number(toBlock),
        });
        sum.toBlock = Number(read["toBlock"]);
        sum.queued += Number(read["queued"]);
        next = read["next"] ?? null;
        if (next === null) continue;
        console.error(`read to block ${sum.toBlock}`);
        await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
      }
      showOne(sum);
    });

  program
    .command("pauses")
    .description("What is paused.")
    .action(() => list("/admin/pauses", "pauses"));
  program
    .command("vendors")
    .description("What our accounts at the vendors can still spend.")
    .action(() => list("/admin/vendors", "vendors"));
  program
    .command("pause <what>")
    .description("provisioning or payouts.")
    .requiredOption("--reason <text>")
    .action((what: string, body: { reason: string }) => one("PUT", `/admin/pauses/${part(what)}`, body));
  program.command("resume <what>").action((what: string) => one("DELETE", `/admin/pauses/${part(what)}`));
}

function blockOf(text: string): number {
  if (!/^\d{1,12}$/.test(text)) throw new InvalidArgumentError("A block is a whole number.");
  return Number(text);
}

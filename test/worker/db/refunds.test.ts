import { expect, test } from "vitest";
import { bookRefund, loadRefund, moveRefund, type NewRefund } from "../../../src/db/refunds.ts";
import { deploy } from "../deployment.ts";

test("what is owed again after it was cancelled is owed to whom it was sold: it went to the token's buyer, who is we, and was held", async () => {
  const { db } = await deploy();
  const payTo = `0x${"1".repeat(40)}`;
  const refund: NewRefund = {
    ...({ subject: "a/1", kind: "failed", tokenId: 1, state: "due", amount: "5", payTo } as const),
    ...{ wakeAt: 1, createdAt: 1 },
  };
  await bookRefund(db, refund);
  await moveRefund(db, refund, ["due"], { state: "cancelled", reason: "retried", wakeAt: null });
  await bookRefund(db, { ...refund, amount: "4" });
  const owed = { state: "due", amount: "4", payTo, recipient: null, txHash: null };
  expect(await loadRefund(db, refund)).toMatchObject(owed);
  // What is not cancelled stays as it is.
  await bookRefund(db, { ...refund, amount: "9" });
  expect(await loadRefund(db, refund)).toMatchObject(owed);
});

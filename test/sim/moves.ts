// Every move of a row that the product writes is held against the tables of lives. Triggers note the moves, so that a statement
// which moves many rows is seen as well.
import { type MachineStage, requireMachineMove } from "../../src/model/machine-life.ts";
import { requirePaymentMove, type StagedPayment } from "../../src/model/payment-life.ts";
import { type RefundState, requireRefundMove } from "../../src/model/refund-life.ts";
import { database } from "./product.ts";
import type { World } from "./world.ts";

type Move = { thing: "machine" | "payment" | "refund"; id: string; was: string; now: string };

const PAYMENT_COLUMNS = {
  state: "state",
  step: "step",
  kind: "kind",
  tier: "tier",
  durationDays: "duration_days",
  cost: "cost",
  boughtAt: "bought_at",
  tokenId: "token_id",
  incarnation: "incarnation",
  purchaseTx: "purchase_tx",
  transferTx: "transfer_tx",
};
const payment = (row: "OLD" | "NEW") =>
  `json_object(${Object.entries(PAYMENT_COLUMNS)
    .map(([name, column]) => `'${name}', ${row}.${column}`)
    .join(", ")})`;

database.exec(`CREATE TEMP TABLE moves (thing TEXT, id TEXT, was TEXT, now TEXT);
  CREATE TEMP TRIGGER machine_moves AFTER UPDATE OF status, step ON main.vms
    WHEN OLD.status <> NEW.status OR OLD.step <> NEW.step BEGIN
    INSERT INTO moves (thing, id, was, now)
      VALUES ('machine', NEW.incarnation, OLD.status || '/' || OLD.step, NEW.status || '/' || NEW.step); END;
  CREATE TEMP TRIGGER payment_moves AFTER UPDATE OF ${Object.values(PAYMENT_COLUMNS).join(", ")} ON main.payments BEGIN
    INSERT INTO moves (thing, id, was, now)
      VALUES ('payment', NEW.id, ${payment("OLD")}, ${payment("NEW")}); END;
  CREATE TEMP TRIGGER refund_moves AFTER UPDATE OF state ON main.refunds WHEN OLD.state <> NEW.state BEGIN
    INSERT INTO moves (thing, id, was, now)
      VALUES ('refund', NEW.incarnation, OLD.state, NEW.state); END;`);
const noted = database.prepare("SELECT * FROM temp.moves");
const forget = database.prepare("DELETE FROM temp.moves");

/** What has moved since the last look. In a world whose rows somebody else writes nothing is held against the product. */
export function checkMoves(world: World): void {
  const moves = noted.all() as Move[];
  if (moves.length === 0) return;
  forget.run();
  if (world.written) return;
  for (const { thing, id, was, now } of moves) {
    try {
      requireThe[thing](was, now);
    } catch (error) {
      world.violate("a row moves as its life has it", `${id}: ${(error as Error).message}`);
    }
  }
}

const requireThe: Record<Move["thing"], (was: string, now: string) => void> = {
  machine: (was, now) => requireMachineMove(was as MachineStage, now as MachineStage),
  payment: (was, now) => requirePaymentMove(JSON.parse(was) as StagedPayment, JSON.parse(now) as StagedPayment),
  refund: (was, now) => requireRefundMove([was as RefundState], now as RefundState),
};

// In which order test files start: by their last durations, or by size where there are none, as on a clean clone; but these
// first, the longest of each project, so that none of them is left alone at the end.
import { BaseSequencer, type TestSpecification } from "vitest/node";

export const SLOW = [
  "test/e2e/chaos.test.ts",
  "test/worker/provisioner/machines/hard-vendors.test.ts",
  "test/worker/edge/gaps.test.ts",
  "test/worker/edge/routes/x402/credentials-faults.test.ts",
  "test/worker/provisioner/payments/order-faults.test.ts",
  "test/worker/edge/access/ip-guard-storage.test.ts",
  "test/worker/chain/logs.test.ts",
  "test/worker/provisioner/faulty-nodes.test.ts",
  "test/worker/provisioner/payments/hostile-wallets.test.ts",
  "test/worker/provisioner/payments/held-tokens.test.ts",
  "test/worker/edge/ends.test.ts",
  "test/worker/provisioner/payments/payment.test.ts",
  "test/worker/edge/routes/admin/payments.test.ts",
];

export class SlowFirst extends BaseSequencer {
  override async sort(specifications: TestSpecification[]): Promise<TestSpecification[]> {
    const sorted = await super.sort(specifications);
    const rank = ({ moduleId }: TestSpecification) => {
      const place = SLOW.findIndex((path) => moduleId.endsWith(path));
      return place === -1 ? SLOW.length : place;
    };
    // Projects stay together: a workerd serves one file after the other of its project.
    return sorted.sort((a, b) => (a.project === b.project ? rank(a) - rank(b) : 0));
  }
}

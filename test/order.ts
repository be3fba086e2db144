// In which order test files start: by their last durations, or by size where there are none; but these first, which wait
// longer than they look, so that none of them is left alone at the end.
import { BaseSequencer, type TestSpecification } from "vitest/node";

export const SLOW = [
  "test/e2e/chaos.test.ts",
  "test/worker/access/ip-guard-storage.test.ts",
  "test/worker/routes/x402/credentials-faults.test.ts",
  "test/worker/provisioner/payment.test.ts",
  "test/worker/routes/admin/payments.test.ts",
];

export class SlowFirst extends BaseSequencer {
  override async sort(specifications: TestSpecification[]): Promise<TestSpecification[]> {
    const sorted = await super.sort(specifications);
    const rank = ({ moduleId }: TestSpecification) => (SLOW.some((path) => moduleId.endsWith(path)) ? 0 : 1);
    // Projects stay together: a workerd serves one file after the other of its project.
    return sorted.sort((a, b) => (a.project === b.project ? rank(a) - rank(b) : 0));
  }
}

import { expect, test } from "vitest";
import { addCheckpoint, type Checkpoint } from "../../../src/chain/checkpoints.ts";

const hash = (number: number) => `0x${number.toString(16)}`;

test("checkpoints stay few over a million blocks, dense near the head, and the oldest is kept", () => {
  let checkpoints: Checkpoint[] = [[0, hash(0)]];
  for (let number = 1; number <= 100_000; number++) checkpoints = addCheckpoint(checkpoints, [number, hash(number)]);
  expect(checkpoints.length).toBeLessThan(250);
  for (let number = 100_000 - 64; number <= 100_000; number++)
    expect(checkpoints).toContainEqual([number, hash(number)]);
  expect(checkpoints[0]).toEqual([100_000, hash(100_000)]);
  expect(checkpoints.at(-1)).toEqual([0, hash(0)]);
  const numbers = checkpoints.map(([number]) => number);
  expect(numbers).toEqual([...numbers].sort((a, b) => b - a));
  // Whatever a reorg's depth, the ancestor found lies little deeper.
  for (const depth of [1, 2, 5, 17, 100, 5_000]) {
    const ancestor = numbers.find((number) => number <= 100_000 - depth);
    expect(100_000 - (ancestor ?? 0)).toBeLessThanOrEqual(depth * 1.25 + 2);
  }
});

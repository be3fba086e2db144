import { expect, test } from "vitest";
import { readBanner } from "../../../src/provisioner/banner.ts";
import { parts } from "../deployment.ts";

test("where connections are dropped no banner comes, and the time limit holds: 4 seconds were asked for, and 134 taken (hard case 52)", async () => {
  const late = new Promise((resolve) => setTimeout(() => resolve("late"), 20_000));
  const looks = [1, 2, 3].map(() => readBanner("127.0.0.1", parts.silentPort, 200));
  expect(await Promise.race([late, Promise.all(looks)])).toEqual([null, null, null]);
});

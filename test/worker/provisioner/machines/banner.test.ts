import { expect, test } from "vitest";
import { Connections, inTurn } from "../../../../src/outbound.ts";
import { readBanner } from "../../../../src/provisioner/machines/banner.ts";
import { parts } from "../../bindings.ts";

test("where connections are dropped no banner comes, and the time limit holds: 4 seconds were asked for, and 134 taken (hard case 52)", async () => {
  const late = new Promise((resolve) => setTimeout(() => resolve("late"), 20_000));
  const looks = [1, 2, 3].map(() => readBanner("127.0.0.1", parts.silentPort, 200));
  expect(await Promise.race([late, Promise.all(looks)])).toEqual([null, null, null]);
});

test("sockets that nobody accepts and whose close does not come leave requests their connections (hard case 52)", async () => {
  const look = () => readBanner("127.0.0.1", parts.silentPort, 200);
  await new Connections().run(async () => {
    expect(await Promise.all([look(), look(), look()])).toEqual([null, null, null]);
    let isLookedAt = false;
    void look().then(() => {
      isLookedAt = true;
    });
    const requests = [1, 2, 3].map(() => inTurn(() => new Promise((resolve) => setTimeout(resolve, 400, "answer"))));
    expect(await Promise.all(requests)).toEqual(["answer", "answer", "answer"]);
    expect(isLookedAt).toBe(false);
  });
});

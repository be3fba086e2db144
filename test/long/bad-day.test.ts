// Both Workers, as built for upload, while their database and objects fail, lose answers and stall, seconds at a time: no
// request is answered with anything but its answer or a 503 that says when to come again, and every purchase gets one machine.
import { afterAll, beforeAll, expect, test } from "vitest";
import { buy, waitForStatus } from "../world/agent.ts";
import type { WorkerWeather } from "../world/bad-day.ts";
import { startWorld, type World } from "../world/world.ts";

const STALL_MS = 7_000;
/** One after the other, each for so long. */
const DAYS: readonly (readonly [seconds: number, weather: WorkerWeather])[] = [
  [4, { database: { kind: "fails" }, objects: null }],
  [5, { database: { kind: "fails", share: 0.4 }, objects: { kind: "fails", share: 0.3 } }],
  [4, { database: { kind: "loses", share: 0.3 }, objects: { kind: "loses", share: 0.3 } }],
  [
    8,
    {
      database: { kind: "stalls", share: 0.3, forMs: STALL_MS },
      objects: { kind: "stalls", share: 0.3, forMs: STALL_MS },
    },
  ],
  [4, { database: { kind: "fails", share: 0.5, message: "D1_ERROR: D1 DB is overloaded. Too many requests queued." } }],
  [4, { database: { kind: "fails", message: "D1_ERROR: Currently processing a long-running export." } }],
];

let world: World;
beforeAll(async () => {
  world = await startWorld({ badDays: true, provisioner: { SSH_KEY_ALGORITHM: "ed25519" } });
});
afterAll(() => world?.stop());

const wait = (seconds: number) => new Promise((resolve) => setTimeout(resolve, seconds * 1_000));

test("a bad day of D1 and of objects costs time, and nothing else (hard case 46)", async () => {
  const { chain } = world;
  const bought: number[] = [];
  const answers = new Map<string, number>();
  let isOver = false;
  const ask = async () => {
    while (!isOver) {
      const answer = await fetch(`${world.url}/status/0`);
      const { code = "" } = (await answer.json()) as { code?: string };
      const said = `${answer.status} ${code} ${answer.status === 503 ? answer.headers.get("retry-after") : ""}`.trim();
      answers.set(said, (answers.get(said) ?? 0) + 1);
      await wait(0.7);
    }
  };
  let asking: Promise<void> | undefined;
  for (const [i, [seconds, weather]] of DAYS.entries()) {
    await world.setWeather(weather);
    if (i < 3) bought.push((await buy(chain, chain.agents[i] ?? chain.operator, 0, 1)).tokenId);
    asking ??= ask();
    await wait(seconds);
  }
  await world.setWeather({ database: null, objects: null });
  await wait(STALL_MS / 1_000);
  isOver = true;
  await asking;
  expect([...answers.keys()]).toContain("503 database_unavailable 5");
  expect([...answers.keys()].filter((said) => !/^(200|503 [a-z_]+ [0-9]+)$/.test(said))).toEqual([]);

  // What holds a row whose answer was lost runs out within minutes: they pass at once.
  await world.workers.database.prepare("UPDATE vms SET lease_until = 0, wake_at = MIN(wake_at, 0)").run();
  for (const tokenId of bought) await waitForStatus(world.url, tokenId, ["running"], { timeoutMs: 150_000 });
  const { results } = await world.workers.database
    .prepare("SELECT label FROM attempts WHERE outcome = 'running'")
    .all();
  expect(results).toHaveLength(bought.length);
  const pages = world.lines.filter((line) => line.includes('"level":"page"'));
  expect(pages.filter((line) => /job_dead|batch_refused|cron_failed|job_failed|scan_pass_failed/.test(line))).toEqual(
    [],
  );
});

// The narrator's second thread: it prints when the first one says nothing, or can't.
import { writeSync } from "node:fs";
import { parentPort } from "node:worker_threads";
import { signOfLife, type Telling } from "./narrator.ts";

const LOOK_MS = 250;

let telling: Telling | undefined;
parentPort?.on("message", (told: Telling) => {
  telling = told;
});
setInterval(() => {
  if (telling === undefined) return;
  const now = Date.now();
  const line = signOfLife(telling, now);
  if (line === undefined) return;
  telling.lastAt = now;
  writeSync(1, `${line}\n`);
}, LOOK_MS);

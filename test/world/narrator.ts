// What a person reads while the local world works: a line for each step with the seconds since the start, and a sign of life
// where a step takes long.
import { styleText } from "node:util";

/** A person takes more than five silent seconds for a hang. */
const MAX_SILENCE_MS = 4_000;
const LOOK_MS = 250;

export type Narrator = ReturnType<typeof makeNarrator>;
type Clock = () => number;

export const color = (format: Parameters<typeof styleText>[0], text: string) =>
  styleText(format, text, { stream: process.stdout, validateStream: true });

/** `print` gets each line; nothing is printed after `stop`. */
export function makeNarrator(print: (line: string) => void, clock: Clock = () => performance.now()) {
  const began = clock();
  let lastAt = began;
  let step: { name: string; since: number } | undefined;
  const seconds = (from: number) => `${((clock() - from) / 1_000).toFixed(1)} s`;
  const say = (text: string) => {
    lastAt = clock();
    print(`${color("dim", seconds(began).padStart(7))}  ${text}`);
  };
  /** Says that the step goes on, where nothing was said for long. */
  const look = () => {
    if (step === undefined || clock() - lastAt < MAX_SILENCE_MS) return;
    say(color("dim", `… ${step.name}, for ${seconds(step.since)} so far`));
  };
  let timer: NodeJS.Timeout | undefined;
  return {
    say,
    look,
    elapsed: () => seconds(began),
    /** Names what goes on from here; undefined where nothing does. */
    begin: (name: string | undefined) => {
      step = name === undefined ? undefined : { name, since: clock() };
      timer ??= setInterval(look, LOOK_MS);
      timer.unref();
    },
    stop: () => clearInterval(timer),
  };
}

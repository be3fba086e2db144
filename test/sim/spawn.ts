// `npm run sim` from a test.
import { execFile } from "node:child_process";
import { FOUND_AT, type PlantName } from "./plants.ts";

type Played = { code: number; output: string };

/** Output and exit code of `npm run sim -- …`. */
export const sim = (...args: string[]) =>
  new Promise<Played>((resolve) => {
    const all = [
      "--disable-warning=ExperimentalWarning",
      "--import",
      "./test/sim/hooks.ts",
      "test/sim/run.ts",
      ...args,
    ];
    execFile(process.execPath, all, { maxBuffer: 1 << 26 }, (error, stdout, stderr) =>
      resolve({ code: typeof error?.code === "number" ? error.code : error === null ? 0 : 1, output: stdout + stderr }),
    );
  });

/** Plays with a bug put in: the seed that is known to find it, then all up to `seeds` where that one finds nothing. */
export async function hunt(plant: PlantName, seeds: number, ...args: string[]): Promise<Played & { seed: number }> {
  const planted = ["--plant", plant, ...args];
  const known = await sim("--seed", String(FOUND_AT[plant]), "--runs", "1", "--jobs", "1", ...planted);
  const played = known.code === 0 ? await sim("--seed", "1", "--runs", String(seeds), ...planted) : known;
  return { ...played, seed: Number(/^Seed (\d+) breaks "/m.exec(played.output)?.[1]) };
}

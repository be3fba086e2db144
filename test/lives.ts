// `npm run lives`: draws the tables of lives into src/README.md. A test holds the drawings to the tables.
import { readFileSync, writeFileSync } from "node:fs";
import type { Life } from "../src/model/lives.ts";
import { MACHINE_STAGES, machineLife } from "../src/model/machine-life.ts";
import { PAYMENT_STAGES, paymentLife } from "../src/model/payment-life.ts";
import { REFUND_STATES, refundLife } from "../src/model/refund-life.ts";

const FILE = `${import.meta.dirname}/../src/README.md`;
const MARKS = ["<!-- lives: npm run lives -->", "<!-- /lives -->"] as const;

type Drawing<Stage extends string> = {
  title: string;
  life: Life<Stage>;
  stages: readonly Stage[];
  /** Stages of one box: an arrow from the box stands for one from each of them. */
  boxOf: (stage: Stage) => string | null;
};

/** A state diagram in Mermaid, which forges draw. */
function draw<Stage extends string>({ title, life, stages, boxOf }: Drawing<Stage>): string {
  const idOf = (stage: string) => stage.replaceAll("/", "_");
  const inBoxes = Map.groupBy(stages, boxOf);
  const boxes = Map.groupBy(stages, (stage) => ((inBoxes.get(boxOf(stage)) ?? []).length > 1 ? boxOf(stage) : null));
  const named = [...boxes].flatMap(([box, inside]) => {
    const lines = inside.map((stage) => `${idOf(stage)} : ${stage}`);
    return box === null
      ? lines.map((line) => `  ${line}`)
      : [`  state "${box}" as ${idOf(box)} {`, ...lines.map((line) => `    ${line}`), "  }"];
  });
  const isShared = (box: string, to: Stage) =>
    boxOf(to) !== box && (boxes.get(box) ?? []).every((stage) => life[stage].becomes.includes(to));
  const arrows = stages.flatMap((stage) => {
    const box = boxOf(stage);
    return life[stage].becomes.map(
      (to) => `  ${idOf(box !== null && boxes.has(box) && isShared(box, to) ? box : stage)} --> ${idOf(to)}`,
    );
  });
  return [`### ${title}`, "", "```mermaid", "stateDiagram-v2", ...named, ...new Set(arrows), "```"].join("\n");
}

const firstOf = (stage: string): string => stage.split("/")[0] ?? stage;

/** What stands between the marks in src/README.md. */
export const drawings = (): string =>
  [
    draw({
      title: "A machine",
      life: machineLife,
      stages: MACHINE_STAGES,
      boxOf: (stage) => (machineLife[stage].active ? firstOf(stage) : null),
    }),
    draw({ title: "A payment", life: paymentLife, stages: PAYMENT_STAGES, boxOf: firstOf }),
    draw({ title: "A refund", life: refundLife, stages: REFUND_STATES, boxOf: () => null }),
  ].join("\n\n");

/** The document as it is, in parts: before, between and after the marks. */
export function partsOf(text: string): [before: string, drawn: string, after: string] {
  const [begin, end] = MARKS.map((mark) => text.indexOf(mark));
  if (begin === undefined || end === undefined || begin < 0 || end < begin) throw new Error(`${FILE} has no marks`);
  const from = begin + MARKS[0].length;
  return [text.slice(0, from), text.slice(from, end).trim(), text.slice(end)];
}

if (process.argv[1] === import.meta.filename) {
  const [before, , after] = partsOf(readFileSync(FILE, "utf8"));
  writeFileSync(FILE, `${before}\n${drawings()}\n${after}`);
}

// `npm run picture`: runs `npm start` and writes what it prints, up to the accounts of the world, as the README's picture.
import { spawn } from "node:child_process";
import { writeFileSync } from "node:fs";

const FILE = ".github/npm-start.svg";
const COLUMNS = 118;
const LINE_PX = 19;
const COLUMN_PX = 7.83;
const MARGIN_PX = 18;
/** What a terminal's codes turn on; any other code turns it off. */
const STYLES: Record<string, string> = {
  1: 'font-weight="bold"',
  2: 'fill="#8b949e"',
  31: 'fill="#ff7b72"',
  32: 'fill="#7ee787"',
  33: 'fill="#e3b341"',
  36: 'fill="#79c0ff"',
};

const escaped = (text: string) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

/** A line with a terminal's codes as SVG, cut off at the last column. */
function drawLine(line: string, index: number): string {
  let room = COLUMNS;
  const parts = line.split("\u001b[").map((part, i) => {
    const [, code = "", text = part] = i === 0 ? [] : (/^(\d*)m(.*)$/.exec(part) ?? []);
    const shown = text.length > room ? `${text.slice(0, Math.max(0, room - 1))}${room > 0 ? "…" : ""}` : text;
    room -= text.length;
    const style = STYLES[code];
    return style === undefined || shown === "" ? escaped(shown) : `<tspan ${style}>${escaped(shown)}</tspan>`;
  });
  return `<text x="${MARGIN_PX}" y="${MARGIN_PX + LINE_PX * (index + 0.75)}">${parts.join("")}</text>`;
}

function draw(lines: readonly string[]): string {
  const [width, height] = [COLUMNS * COLUMN_PX + 2 * MARGIN_PX, lines.length * LINE_PX + 2 * MARGIN_PX].map(Math.ceil);
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" xml:space="preserve">
<style>text { font: 13px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: pre; fill: #e6edf3 }</style>
<rect width="${width}" height="${height}" rx="8" fill="#0d1117"/>
${lines.map(drawLine).join("\n")}
</svg>
`;
}

const { NO_COLOR: _, ...environment } = process.env;
const child = spawn("npm", ["start"], {
  env: { ...environment, FORCE_COLOR: "1" },
  stdio: ["ignore", "pipe", "inherit"],
});
let output = "";
child.stdout.on("data", (data: Buffer) => {
  process.stdout.write(data);
  output += data.toString();
  if (/^ {2}accounts/m.test(output)) child.kill("SIGINT");
});
child.once("close", () => {
  const [shown, rest] = output.split(/^ {2}accounts/m);
  if (shown === undefined || rest === undefined || /failed: /.test(shown)) {
    console.error("npm start did not come to its end: the picture stays as it was.");
    process.exitCode = 1;
    return;
  }
  // npm's own lines come first.
  const lines = shown.split("\n").filter((line) => !line.startsWith("> "));
  writeFileSync(FILE, draw(["$ npm start", ...lines.join("\n").trim().split("\n")]));
  console.log(`\n${FILE} is written.`);
});

import { benchOverhead } from "./overhead.ts";

console.time("all");
await benchOverhead(50, 10);
console.timeEnd("all");
process.exit(0);

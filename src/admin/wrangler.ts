import { fileURLToPath } from "node:url";

/** wrangler's own program, as `npx wrangler` would run it. */
export const WRANGLER = fileURLToPath(
  import.meta.resolve("wrangler/package.json").replace("package.json", "bin/wrangler.js"),
);

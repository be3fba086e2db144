// `npm run bench`: prints figures and judges none. Without a name all parts run, one after the other.
import { benchRoutes } from "./routes.ts";

await benchRoutes(Number(process.argv[2] ?? 5));

// What only wrangler can read, as JSON on standard output: in a process of its own, since loading it takes seconds and
// leaves handlers of signals behind. Arguments: a folder of migrations and a Worker's configuration.
import { readD1Migrations } from "@cloudflare/vitest-plugin";
import { unstable_readConfig } from "wrangler";

const [migrations = "", config = ""] = process.argv.slice(2);
const read = {
  migrations: (await readD1Migrations(migrations)).map(({ queries }) => queries),
  consumers: unstable_readConfig({ config }).queues.consumers ?? [],
};
process.stdout.write(JSON.stringify(read));

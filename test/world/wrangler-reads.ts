// What only wrangler can read, as JSON on standard output: in a process of its own, since loading it takes seconds and
// leaves handlers of signals behind. Argument: a Worker's configuration.
import { unstable_readConfig } from "wrangler";

const [config = ""] = process.argv.slice(2);
process.stdout.write(JSON.stringify({ consumers: unstable_readConfig({ config }).queues.consumers ?? [] }));

// What every handler of the edge works with.
import type { OpenAPIHono } from "@hono/zod-openapi";
import type { Chain } from "../chain/client.ts";
import type { Database } from "../db/client.ts";
import type { EdgeConfig } from "./config.ts";
import type { Budget } from "./waits.ts";

export type App = {
  Variables: {
    requestId: string;
    /** Name of the client's guard. */
    client: string;
    config: EdgeConfig;
    db: Database;
    chain: Chain;
    /** Behind `limitedBeside`: resolves once the limiter lets the request pass, rejects with its refusal. */
    admitted: Promise<void>;
    /** Behind `limitedEvenIfBanned`: unix milliseconds. */
    bannedUntil: number | null;
    /** Behind a limiter that could ask: what is left of the client's requests to this route. */
    budget: Budget | undefined;
    /** The request counted towards a ban already. */
    violated: boolean | undefined;
    /** Behind `operatorsOnly`: the id of the caller's key. */
    operator: string;
  };
};
export type Router = OpenAPIHono<App>;

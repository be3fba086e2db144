// What an operator's on-call service looks like from here: takes signed webhooks and shows them.
import { Hono } from "hono";
import { listen } from "./server.ts";

export type Page = { headers: Record<string, string>; body: string };

/** `POST /page` takes one; `GET /pages` shows those taken; `POST /refuse/:times` answers the next ones with 503. */
export async function startPager(atPort = 0) {
  const pages: Page[] = [];
  let refusals = 0;
  const app = new Hono()
    .post("/page", async (c) => {
      if (refusals > 0) {
        refusals -= 1;
        return c.text("not now", 503);
      }
      pages.push({ headers: Object.fromEntries(c.req.raw.headers), body: await c.req.text() });
      return c.body(null, 204);
    })
    .get("/pages", (c) => c.json(pages))
    .post("/refuse/:times", (c) => {
      refusals = Number(c.req.param("times"));
      return c.body(null, 204);
    });
  const { port, stop } = await listen(app.fetch, atPort);
  return { url: `http://127.0.0.1:${port}`, pages, stop };
}

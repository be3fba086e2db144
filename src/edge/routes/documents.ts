import { createRoute, z } from "@hono/zod-openapi";
import swaggerStyle from "swagger-ui-dist/swagger-ui.css";
import swaggerScript from "swagger-ui-dist/swagger-ui-bundle.js";
import { VERSION } from "../../config.ts";
import { limited } from "../access/admission.ts";
import type { EdgeConfig } from "../config.ts";
import type { Router } from "../http.ts";
import llmsText from "./llms.txt";
import { errorsOf } from "./schemas.ts";

const ASSET_CACHE = "public, max-age=86400";
const DOCS_POLICY =
  "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'";
const USDC_ON_BASE = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913";

const indexRoute = createRoute({
  method: "get",
  path: "/",
  summary: "What this service is and where its documents are",
  middleware: [limited("documents")] as const,
  responses: {
    200: {
      description: "Links",
      content: {
        "application/json": {
          schema: z.object({
            name: z.string(),
            version: z.string(),
            docs: z.string(),
            openapi: z.string(),
            llms: z.string(),
          }),
        },
      },
    },
    ...errorsOf(),
  },
});

const DOCS_PAGE = `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>ClawCloud API ${VERSION}</title>
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="docs"></div>
<script src="/docs/swagger-ui.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
`;
const DOCS_START = `SwaggerUIBundle({ url: "/openapi.json", dom_id: "#docs", deepLinking: true });\n`;

export function mountDocuments(app: Router): void {
  app.openapi(indexRoute, (c) => {
    const [api] = c.var.config.PUBLIC_URLS;
    const documents = { docs: `${api}/docs`, openapi: `${api}/openapi.json`, llms: `${api}/llms.txt` };
    return c.json({ name: "ClawCloud", version: VERSION, ...documents }, 200);
  });

  app.get("/openapi.json", limited("documents"), (c) => {
    const document = app.getOpenAPI31Document({
      openapi: "3.1.0",
      info: {
        title: "ClawCloud API",
        version: VERSION,
        description:
          "VMs for AI agents: USDC on Base in, an ERC-721 token out, SSH credentials for the token's owner. SSH is the one open port, unless an order over x402 asks for more.",
        license: { name: "MIT" },
      },
      servers: c.var.config.PUBLIC_URLS.map((url) => ({ url })),
    });
    return c.json(document);
  });

  app.get("/docs", limited("documents"), (c) => {
    c.header("Content-Security-Policy", DOCS_POLICY);
    return c.html(DOCS_PAGE);
  });
  const asset = (path: string, type: string, text: string) =>
    app.get(path, limited("documents"), (c) =>
      c.body(text, 200, { "Content-Type": type, "Cache-Control": ASSET_CACHE }),
    );
  asset("/docs/swagger-ui.js", "text/javascript; charset=utf-8", swaggerScript);
  asset("/docs/swagger-ui.css", "text/css; charset=utf-8", swaggerStyle);
  asset("/docs/start.js", "text/javascript; charset=utf-8", DOCS_START);

  app.get("/llms.txt", limited("documents"), (c) => c.text(fillIn(llmsText, c.var.config)));
}

function fillIn(text: string, config: EdgeConfig): string {
  const api = config.PUBLIC_URLS[0] ?? "";
  const values: Record<string, string> = {
    API: api,
    HOST: new URL(api).host,
    CHAIN_ID: String(config.CHAIN_ID),
    CONTRACT: config.CONTRACT_ADDRESS,
    USDC: USDC_ON_BASE,
  };
  return text.replace(/\{\{(\w+)\}\}/g, (whole, name: string) => values[name] ?? whole);
}

// The vendors' own words for every refusal that public clients know, each with where it was seen, and what a person who reads
// it would do. Nothing here comes from the product's expressions: tests and simulators hold the product against it.

/**
 * A source that begins with "after" has the fact and not the sentence.
 * - `sold out`: none there now; try elsewhere
 * - `not there`: refused for this candidate, or for our request; others may do, and if none does a person looks
 * - `limit`: the account may have no more machines
 * - `person`: nothing works until a person acts
 * - `later`: the same call works after a while
 * - `look`: something may have happened
 * - `gone`, `done`: the machine is not there; the order was taken
 * - `never`: this machine can't be changed so
 */
export type Meaning = "sold out" | "not there" | "limit" | "person" | "later" | "look" | "gone" | "done" | "never";

export type Words = {
  vendor: "vultr" | "runpod";
  call: "create" | "get" | "list" | "delete" | "change" | "reinstall";
  status: number;
  /** The body where it is JSON, else its text. */
  body: object | string;
  means: Meaning;
  source: string;
};

const VULTR_SPEC = "Vultr's OpenAPI document";
const RUNPOD_SPEC = "RunPod's OpenAPI document (createPod)";
const SMOKE = "runpod/containers tests/runpod_smoke/pod.py";
const PAGE = "<html><head><title>502 Bad Gateway</title></head><body><center>nginx</center></body></html>";

const vultr = (call: Words["call"], status: number, error: string, means: Meaning, source: string): Words => ({
  vendor: "vultr",
  call,
  status,
  body: { error, status },
  means,
  source,
});
const runpod = (call: Words["call"], status: number, detail: string, means: Meaning, source: string): Words => ({
  vendor: "runpod",
  call,
  status,
  body: { title: "Error", status, detail },
  means,
  source,
});

const ADD = "Server add failed: ";
const NONE_LEFT =
  "There are no longer any instances available with the requested specifications. Please refresh and try again.";
const NO_RESOURCES = "This machine does not have the resources to deploy your pod. Please try a different machine";
const NONE_NOW = "create pod: There are no instances currently available";
const LOCKED = "Unable to destroy server: Unable to remove VM: Server is currently locked";
const ACTIVE_LIMIT = "You have reached the maximum number of active instances for this account.";

const ORDERS_AT_VULTR: readonly Words[] = [
  vultr(
    "create",
    400,
    `${ADD}The selected plan is not available in the selected region`,
    "sold out",
    "a log of GPU creates, 2026-09",
  ),
  vultr(
    "create",
    400,
    "Plan is not available in the selected location",
    "sold out",
    "a control panel's tests of its Vultr client",
  ),
  vultr("create", 400, `${ADD}This plan is sold out in the selected region.`, "sold out", "after public reports"),
  vultr("create", 500, `${ADD}This location is out of stock`, "sold out", "after public reports"),
  vultr(
    "create",
    503,
    "No capacity in this location, please choose another one",
    "sold out",
    "after vultr/whmcs-vultr issue 74: host nodes out of capacity",
  ),
  vultr("create", 400, `${ADD}${ACTIVE_LIMIT}`, "limit", "ingvarch/tent, seen against an account"),
  vultr("create", 400, `Unable to place order: ${ACTIVE_LIMIT}`, "limit", "a client's tests of its Vultr provider"),
  vultr(
    "create",
    400,
    `${ADD}You have reached the maximum monthly fee limit for this account.`,
    "limit",
    "after Vultr's billing pages on account limits",
  ),
  vultr(
    "create",
    400,
    `${ADD}Please open a support request for access to this product.`,
    "not there",
    "a log of GPU creates, 2026-09",
  ),
  vultr("create", 400, "Invalid plan chosen.", "not there", `${VULTR_SPEC}; terraform-provider-vultr issue 377`),
  vultr("create", 400, "Bad request.", "not there", "nanovms/ops issue 1191"),
  vultr("create", 400, "Invalid region.", "not there", "ingvarch/tent"),
  vultr("create", 404, "instance not found", "not there", VULTR_SPEC),
  vultr("create", 403, "Forbidden", "not there", VULTR_SPEC),
  vultr("create", 401, "Unauthorized IP address: 192.0.2.1", "person", VULTR_SPEC),
  vultr("create", 401, "Invalid API token.", "person", "vultr/govultr users' reports"),
  vultr(
    "create",
    403,
    "Your API key has not the permission to do that",
    "person",
    "after Vultr's page on users' access control lists",
  ),
  vultr(
    "create",
    400,
    `${ADD}Your account balance is past due.`,
    "person",
    "after Vultr's billing pages on suspended accounts",
  ),
  vultr("create", 429, "rate limit exceeded", "later", VULTR_SPEC),
  vultr("create", 500, "Internal server error.", "look", VULTR_SPEC),
  vultr("create", 503, "Service not available", "look", "any proxy"),
  { vendor: "vultr", call: "create", status: 502, body: PAGE, means: "look", source: "nginx" },
  { vendor: "vultr", call: "create", status: 200, body: {}, means: "look", source: "govultr takes every 2xx" },
  { vendor: "vultr", call: "create", status: 202, body: "", means: "look", source: "govultr takes every 2xx" },
  { vendor: "vultr", call: "create", status: 202, body: PAGE, means: "look", source: "a gateway" },
  {
    vendor: "vultr",
    call: "create",
    status: 202,
    body: { instance: { id: "" } },
    means: "look",
    source: "a body without an id",
  },
  { vendor: "vultr", call: "create", status: 302, body: "", means: "look", source: "a gateway's login page" },
];

const ORDERS_AT_RUNPOD: readonly Words[] = [
  runpod("create", 400, NONE_LEFT, "sold out", "RunPod's migration guide; runpodctl cmd/pods/createPods.go"),
  runpod("create", 400, NO_RESOURCES, "sold out", SMOKE),
  runpod("create", 400, NONE_NOW, "sold out", "several public clients"),
  runpod("create", 500, NONE_NOW, "sold out", "several public clients: v1 answered 500"),
  runpod("create", 500, NO_RESOURCES, "sold out", "several public clients: v1 answered 500"),
  runpod("create", 500, `create pod: ${NONE_LEFT}`, "sold out", "a public client's tests"),
  runpod("create", 400, "no GPUs available", "sold out", SMOKE),
  runpod("create", 400, "insufficient capacity", "sold out", SMOKE),
  runpod("create", 400, "sold out", "sold out", SMOKE),
  runpod("create", 400, "There are no machines with enough disk space", "sold out", "after public reports"),
  runpod("create", 503, "capacity pool empty for requested GPU family", "sold out", "a public client's tests"),
  runpod("create", 400, "request could not be processed", "not there", RUNPOD_SPEC),
  runpod("create", 400, "Something went wrong. Please try again later or contact support.", "not there", SMOKE),
  runpod("create", 403, "access denied", "not there", `${RUNPOD_SPEC}: no access to this pool`),
  runpod("create", 404, "resource not found", "not there", RUNPOD_SPEC),
  runpod("create", 422, "Unknown GPU type: X", "not there", "a Rust client's recordings, 2026-10"),
  runpod("create", 422, "Request validation failed.", "not there", RUNPOD_SPEC),
  runpod("create", 401, "missing bearer token", "person", RUNPOD_SPEC),
  runpod("create", 402, "insufficient balance", "person", RUNPOD_SPEC),
  runpod("create", 403, "this API key lacks the required scope", "person", "after RunPod's page on API keys"),
  runpod("create", 429, "rate limit exceeded for the minute window", "later", RUNPOD_SPEC),
  runpod("create", 500, "Something went wrong. Please try again later or contact support.", "look", SMOKE),
  runpod("create", 503, "Service not available", "look", "any proxy"),
  { vendor: "runpod", call: "create", status: 524, body: PAGE, means: "look", source: "Cloudflare, before RunPod" },
  {
    vendor: "runpod",
    call: "create",
    status: 403,
    body: PAGE,
    means: "not there",
    source: "Cloudflare, before RunPod",
  },
  { vendor: "runpod", call: "create", status: 200, body: {}, means: "look", source: "another 2xx" },
  { vendor: "runpod", call: "create", status: 201, body: "", means: "look", source: "an empty body" },
  {
    vendor: "runpod",
    call: "create",
    status: 201,
    body: { name: "no id" },
    means: "look",
    source: "a body without an id",
  },
];

const CALLS: readonly Words[] = [
  vultr("delete", 500, LOCKED, "later", "vultr/ansible-collection-vultr issue 113"),
  vultr("delete", 400, "Server is currently locked", "later", "public reports"),
  vultr("delete", 500, "Unable to destroy server: Server is not currently active", "later", "public reports"),
  vultr(
    "delete",
    500,
    "Unable to destroy server: Server is already pending destruction.",
    "done",
    "squat/terraform-provider-vultr pull 50",
  ),
  vultr("delete", 404, "instance not found", "gone", VULTR_SPEC),
  vultr("delete", 400, "Invalid instance ID", "gone", "cluster-api-provider-vultr"),
  vultr("delete", 401, "Unauthorized IP address: 192.0.2.1", "person", VULTR_SPEC),
  { vendor: "vultr", call: "delete", status: 200, body: {}, means: "done", source: "official clients take every 2xx" },
  {
    vendor: "vultr",
    call: "delete",
    status: 202,
    body: PAGE,
    means: "done",
    source: "official clients take every 2xx",
  },
  vultr("get", 404, "instance not found", "gone", "terraform-provider-vultr utility.go"),
  vultr("get", 400, "Invalid instance ID", "gone", "cluster-api-provider-vultr"),
  vultr("get", 500, "Internal server error.", "look", VULTR_SPEC),
  vultr("get", 403, "Forbidden", "person", VULTR_SPEC),
  vultr("list", 401, "Unauthorized IP address: 192.0.2.1", "person", VULTR_SPEC),
  vultr("list", 429, "rate limit exceeded", "later", VULTR_SPEC),
  {
    vendor: "vultr",
    call: "list",
    status: 200,
    body: { instances: [] },
    means: "look",
    source: "ingvarch/tent: a 200 without meta",
  },
  {
    vendor: "vultr",
    call: "list",
    status: 200,
    body: { instances: [], meta: { total: 2, links: { next: "", prev: "" } } },
    means: "later",
    source: "a list that says that it is longer",
  },
  { vendor: "vultr", call: "list", status: 204, body: "", means: "look", source: "another 2xx" },
  vultr("change", 400, "Bad request.", "never", VULTR_SPEC),
  vultr("change", 404, "instance not found", "never", VULTR_SPEC),
  vultr("change", 400, "Server is currently locked", "later", "public reports"),
  { vendor: "vultr", call: "change", status: 200, body: {}, means: "done", source: "official clients take every 2xx" },
  vultr(
    "reinstall",
    500,
    "Unable to reinstall server: Server is currently locked",
    "later",
    "vultr/ansible-collection-vultr issue 131",
  ),
  vultr("reinstall", 500, "Internal server error.", "look", VULTR_SPEC),
  {
    vendor: "vultr",
    call: "reinstall",
    status: 204,
    body: "",
    means: "done",
    source: "official clients take every 2xx",
  },
  runpod("delete", 400, "Pod is locked", "later", "a Rust client's recordings, 2026-10"),
  runpod("delete", 404, "pod not found", "gone", RUNPOD_SPEC),
  runpod("delete", 503, "Service not available", "look", "any proxy"),
  runpod("delete", 401, "missing bearer token", "person", RUNPOD_SPEC),
  { vendor: "runpod", call: "delete", status: 200, body: {}, means: "done", source: "another 2xx" },
  runpod("get", 404, "pod not found", "gone", RUNPOD_SPEC),
  runpod("get", 403, "access denied", "person", RUNPOD_SPEC),
  runpod("list", 403, "access denied", "person", RUNPOD_SPEC),
  runpod("list", 502, "bad gateway", "look", "any proxy"),
  { vendor: "runpod", call: "list", status: 200, body: [], means: "look", source: "GraphQL's clients knew an array" },
];

export const VENDOR_WORDS: readonly Words[] = [...ORDERS_AT_VULTR, ...ORDERS_AT_RUNPOD, ...CALLS];

/** What a vendor says to an order, of one meaning. */
export const ordersRefused = (vendor: Words["vendor"], means: Meaning): readonly Words[] =>
  VENDOR_WORDS.filter((words) => words.vendor === vendor && words.call === "create" && words.means === means);

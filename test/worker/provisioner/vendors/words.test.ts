// Every refusal that the vendors are known to say, in their own words, against what the adapters make of it (hard case 51).
import { expect, test } from "vitest";
import { generateHostKey } from "../../../../src/credentials/ssh-keys.ts";
import { type MachineSpec, type Vendor, VendorError } from "../../../../src/provisioner/vendors/vendor.ts";
import { type Meaning, VENDOR_WORDS, type Words } from "../../../world/vendor-words.ts";
import { type Deployment, deploy } from "../../deployment.ts";
import { addFault } from "../../faults.ts";

const SPEC = {
  label: "clawcloud-words-1-00000000-0-1",
  mark: "abc123",
  publicKey: `ssh-ed25519 ${"A".repeat(68)}`,
  hostKey: generateHostKey(),
  ports: [],
  note: "# A machine\n",
};
const specOf = ({ name }: Vendor): MachineSpec =>
  name === "vultr"
    ? { ...SPEC, region: "ewr", plan: "vc2-1c-1gb" }
    : { ...SPEC, region: "COMMUNITY", plan: "NVIDIA GeForce RTX 4090" };

const ACTIONS: Record<Exclude<Meaning, "gone" | "done">, string> = {
  "sold out": "next_candidate",
  "not there": "skip_candidate",
  limit: "at_limit",
  person: "page",
  later: "wait",
  look: "unknown",
  never: "next_candidate",
};
/** What the adapter should do: "gone" is null from a look and nothing from a delete. */
const expected = ({ call, means }: Words): string =>
  means === "done" ? "done" : means === "gone" ? (call === "get" ? "null" : "done") : ACTIONS[means];

async function act(vendor: Vendor, call: Words["call"], instanceId: string): Promise<unknown> {
  if (call === "create") return vendor.create(specOf(vendor), await vendor.prepare());
  if (call === "get") return vendor.get(instanceId);
  if (call === "list") return vendor.list();
  if (call === "delete") return vendor.delete(instanceId);
  if (call === "change") return vendor.scrub?.(instanceId);
  return vendor.reinstall?.(instanceId, specOf(vendor));
}

async function play(world: Deployment, { vendor: name, call, status, body }: Words, instanceId: string) {
  const answered = typeof body === "string" ? { text: body } : { body };
  await addFault(name, { call, kind: "answer", status, ...answered, times: 1 });
  try {
    return (await act(world.context.vendors[name], call, instanceId)) === null ? "null" : "done";
  } catch (error) {
    if (!(error instanceof VendorError)) throw error;
    return error.action;
  }
}

test.each([
  ["vultr", "an order"],
  ["runpod", "an order"],
  ["vultr", "another call"],
  ["runpod", "another call"],
] as const)("%s: what it says to %s is understood, word by word (hard case 51)", async (name, kind) => {
  const world = await deploy();
  const vendor = world.context.vendors[name];
  const { instanceId } = await vendor.create(specOf(vendor), await vendor.prepare());
  const rows = VENDOR_WORDS.filter(
    (words) => words.vendor === name && (words.call === "create") === (kind === "an order"),
  );
  expect(rows.length).toBeGreaterThan(6);
  const [said, should]: [string[], string[]] = [[], []];
  for (const words of rows) {
    const line = `${words.call} ${words.status} ${JSON.stringify(words.body).slice(0, 120)}`;
    said.push(`${line}: ${await play(world, words, instanceId)}`);
    should.push(`${line}: ${expected(words)}`);
  }
  expect(said).toEqual(should);
});

// Firewall groups at Vultr: one for a deployment's machines with SSH alone, one for each set of ports that orders ask for.
// They are found by their descriptions.
import { z } from "zod";
import type { ProvisionerConfig } from "../config.ts";
import { readRows, type VendorAnswer } from "./request.ts";

/** An unused group that no order takes any more is still used for a while by those that found it before. */
const REUSED_MS = 12 * 3_600_000;
const KEPT_MS = 24 * 3_600_000;
const MAX_DELETED = 2;

const groupSchema = z.object({
  id: z.string().min(1),
  description: z.string(),
  date_created: z.string().nullish().catch(null),
  instance_count: z.number().nullish().catch(null),
});
const ruleSchema = z.object({ ip_type: z.string(), port: z.string() });
const rulePage = z.object({ firewall_rules: z.array(z.unknown()) });
type Group = z.output<typeof groupSchema>;

/** The adapter's own calls: each throws what a refusal means. */
type Calls = {
  groups: () => Promise<unknown[]>;
  read: <T>(path: string, schema: z.ZodType<T>) => Promise<T>;
  make: <T>(path: string, body: object, schema: z.ZodType<T>) => Promise<T>;
  remove: (path: string) => Promise<VendorAnswer>;
};

/** How many calls it takes the first time: list, group, its rules, and two rules for each port; and old groups' ends. */
export const firewallCalls = (ports: readonly number[]): number =>
  3 + 2 * (1 + ports.length) + (ports.length === 0 ? 0 : MAX_DELETED);

/** The id of a group that opens SSH and those ports over TCP, and nothing else. */
export async function ensureFirewall(
  calls: Calls,
  { DEPLOYMENT_ID, VULTR_SSH_PORT }: Pick<ProvisionerConfig, "DEPLOYMENT_ID" | "VULTR_SSH_PORT">,
  ports: readonly number[],
  now: number,
): Promise<string> {
  const family = `clawcloud-${DEPLOYMENT_ID} ssh-${VULTR_SSH_PORT}`;
  const description = ports.length === 0 ? family : `${family} tcp-${ports.join(",")}`;
  const groups = readRows("vultr", await calls.groups(), groupSchema);
  const isUsed = ({ instance_count: count }: Group) => count !== null && count !== undefined && count > 0;
  const isFresh = (group: Group) => ports.length === 0 || isUsed(group) || ageOf(group, now) < REUSED_MS;
  const known = groups.find((group) => group.description === description && isFresh(group));
  if (known === undefined && ports.length > 0) await endUnused(calls, groups, `${family} tcp-`, now);
  const group =
    known ??
    (await calls.make("/firewalls", { description }, z.object({ firewall_group: groupSchema }))).firewall_group;
  const rules = readRows(
    "vultr",
    (await calls.read(`/firewalls/${group.id}/rules`, rulePage)).firewall_rules,
    ruleSchema,
  );
  // A buyer may ask for the number that SSH has here, which is not always 22.
  for (const port of new Set([VULTR_SSH_PORT, ...ports].map(String))) {
    for (const [ip_type, subnet] of [
      ["v4", "0.0.0.0"],
      ["v6", "::"],
    ] as const) {
      if (rules.some((rule) => rule.ip_type === ip_type && rule.port === port)) continue;
      const notes = port === String(VULTR_SSH_PORT) ? "ssh" : "asked for";
      await calls.make(
        `/firewalls/${group.id}/rules`,
        { ip_type, protocol: "tcp", subnet, subnet_size: 0, port, notes },
        z.unknown(),
      );
    }
  }
  return group.id;
}

/**
 * Sets of ports are as many as buyers think of, and an account has so many groups. One that is in use is not deleted by the
 * vendor either; one that stays is met again with the next new set.
 */
async function endUnused(calls: Calls, groups: readonly Group[], prefix: string, now: number): Promise<void> {
  const unused = groups.filter(
    (group) => group.description.startsWith(prefix) && group.instance_count === 0 && ageOf(group, now) > KEPT_MS,
  );
  for (const { id } of unused.slice(0, MAX_DELETED)) await calls.remove(`/firewalls/${encodeURIComponent(id)}`);
}

/** One whose age nobody knows is neither taken nor ended. */
const ageOf = ({ date_created: created }: Group, now: number): number => {
  const at = Date.parse(created ?? "");
  return Number.isNaN(at) ? REUSED_MS : now - at;
};

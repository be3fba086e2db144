// What an isolate knows of bans by itself.
import { expect, test } from "vitest";
import { forgetBan, knownBan, rememberBan } from "../../../../src/edge/access/bans.ts";
import { guardsOf } from "../../../../src/model/client-name.ts";

const NOW = Date.now();

test("a ban is known until it ends, and no longer than BAN_CACHE_SECONDS without asking again", () => {
  const [own = ""] = guardsOf("198.51.100.70");
  rememberBan(own, NOW + 60_000, NOW, 10);
  expect(knownBan(own, NOW + 9_999)).toBe(NOW + 60_000);
  expect(knownBan(own, NOW + 10_000)).toBeNull();
  rememberBan(own, NOW + 5_000, NOW, 10);
  expect(knownBan(own, NOW + 5_000)).toBeNull();
});

test("a client's own ban is known of its cross-site requests too, and theirs of them alone (hard cases 22, 44)", () => {
  const [own = "", crossSite = ""] = guardsOf("198.51.100.71");
  rememberBan(crossSite, NOW + 60_000, NOW, 10);
  expect([own, crossSite].map((name) => knownBan(name, NOW))).toEqual([null, NOW + 60_000]);
  rememberBan(own, NOW + 90_000, NOW, 10);
  expect([own, crossSite].map((name) => knownBan(name, NOW))).toEqual([NOW + 90_000, NOW + 90_000]);
  expect([own, crossSite].map(forgetBan)).toEqual([true, true]);
});

test("of many bans the oldest are forgotten first", () => {
  const name = (client: number) => `client ${client}#cross-site`;
  for (let client = 0; client <= 50_000; client++) rememberBan(name(client), NOW + 60_000, NOW, 10);
  expect([0, 50_000].map((client) => knownBan(name(client), NOW))).toEqual([null, NOW + 60_000]);
  for (let client = 0; client <= 50_000; client++) forgetBan(name(client));
});

// Who means no good, or is merely unusual: payers that choose how their authorizations are used, accounts with code,
// storms of transfers.
import type { Hex } from "viem";
import { type Code, type SignedAuthorization, wordsOf } from "./contracts.ts";
import { anySigned, PAYERS, STRANGER } from "./payers.ts";
import { OPERATOR } from "./product.ts";
import type { World } from "./world.ts";

const NEVER = 10 ** 12;
const FRIEND = `0x${"fe".repeat(20)}`;
/** The last two are above what one transaction may use, with the margin that is put on an estimate or without it. */
const BURNT = [0, 0, 3_000_000, 13_000_000, 20_000_000];
const STORM = { least: 100, most: 300 };

/** Another message under a nonce that an order names: EIP-3009 binds a nonce to none. */
function sayAnother(world: World, { from, nonce, value }: Pick<SignedAuthorization, "from" | "nonce" | "value">) {
  const { random, chain } = world;
  const ways = [
    { to: from, value: 0n },
    { to: from, value: 0n },
    { to: from, value },
    { to: FRIEND, value: 1n },
    { to: OPERATOR, value: 1n },
  ];
  const { to, value: other } = random.pick(ways) ?? { to: from, value: 0n };
  const signature: Hex = `0x${random.hex(130)}`;
  const authorization = { from, to, value: other, validAfter: 0, validBefore: NEVER, nonce, signature };
  chain.signatures.set(signature, wordsOf(authorization));
  return authorization;
}

/** Hard case 27: one real payment, and the nonces of orders made before and after it used for next to nothing. */
export const batchNonces = (world: World): void => {
  const { random, chain } = world;
  const real = anySigned(world)?.authorization;
  if (real === undefined) return;
  const { from, value } = real;
  const earlier = world.signed.flatMap(({ authorization }) =>
    authorization.from === from && authorization !== real && random.unit() < 0.8 ? [authorization.nonce] : [],
  );
  const later = Array.from({ length: random.int(0, 2) }, (): Hex => `0x${random.hex(64)}`);
  world.nonces.set(from, [...(world.nonces.get(from) ?? []), ...later]);
  const others = [...earlier, ...later].map((nonce) => sayAnother(world, { from, nonce, value }));
  const place = random.int(0, others.length);
  const all = random.unit() < 0.85 ? [...others.slice(0, place), real, ...others.slice(place)] : others;
  if (all.length === 0) return;
  world.wrongdoers.add(from);
  world.orderMore(2);
  const calls = all.map((authorization) => ({ from: STRANGER, call: { kind: "take", authorization } as const }));
  chain.submit({ kind: "call", from, call: { kind: "batch", calls } });
  world.note(
    `${from.slice(0, 6)} uses ${all.map(({ nonce, value }) => `${nonce.slice(0, 10)} for ${value}`).join(", ")}`,
  );
};

/** Several honest payments in one transaction: whoever submits them saves gas. */
export const batchPayments = (world: World): void => {
  const chosen = world.signed.filter(() => world.random.unit() < 0.7).map(({ authorization }) => authorization);
  if (chosen.length < 2) return;
  const calls = chosen.map((authorization) => ({ from: STRANGER, call: { kind: "take", authorization } as const }));
  world.chain.submit({ kind: "call", from: STRANGER, call: { kind: "batch", calls } });
  world.note(`a stranger submits ${chosen.map(({ nonce }) => nonce.slice(0, 10)).join(" and ")} together`);
};

/** In the last seconds of its time, long after everybody has given it up. */
export const payLate = (world: World): void => {
  const authorization = anySigned(world)?.authorization;
  if (authorization === undefined) return;
  const { clock, chain, random } = world;
  const at = (authorization.validBefore - random.int(1, 40)) * 1_000;
  world.note(`${authorization.nonce.slice(0, 10)} will be submitted in its last seconds`);
  clock.after(at - clock.now, () =>
    chain.submit({ kind: "call", from: STRANGER, call: { kind: "take", authorization } }),
  );
};

export const submitOwn = (world: World): void => {
  const authorization = anySigned(world)?.authorization;
  if (authorization === undefined) return;
  world.chain.submit({ kind: "call", from: authorization.from, call: { kind: "take", authorization } });
  world.note(`${authorization.from.slice(0, 6)} submits ${authorization.nonce.slice(0, 10)} itself`);
};

/** Hard cases 35 and 36: an account that gets code, and loses it again perhaps. */
export const delegate = (world: World): void => {
  const { random, chain, clock } = world;
  const from = random.pick(PAYERS);
  if (from === undefined) return;
  const answer = random.pick(["accepts", "accepts", "refuses", "fickle"] as const) ?? "accepts";
  const code: Code = { answer, gas: random.pick(BURNT) ?? 0 };
  world.wrongdoers.add(from);
  chain.submit({ kind: "call", from, call: { kind: "delegate", code } });
  world.note(`${from.slice(0, 6)} delegates its account: ${answer}, ${code.gas} gas`);
  if (random.unit() < 0.4) {
    clock.after(random.int(20_000, 400_000), () =>
      chain.submit({ kind: "call", from, call: { kind: "delegate", code: null } }),
    );
  }
};

/** One token, hundreds of owners within a few blocks. */
export const storm = (world: World): void => {
  const { random, chain } = world;
  const token = random.pick([...chain.head.state.tokens].filter(([, { owner }]) => owner !== OPERATOR));
  if (token === undefined) return;
  const [tokenId, { owner }] = token;
  const times = random.int(STORM.least, STORM.most);
  let from = owner;
  for (let sent = 0; sent < times; ) {
    const calls = [];
    for (const many = random.int(20, 100); calls.length < many && sent < times; sent++) {
      const to = random.pick(world.agents.filter((agent) => agent !== from)) ?? owner;
      calls.push({ from, call: { kind: "hand_over", tokenId, from, to } as const });
      from = to;
    }
    chain.submit({ kind: "call", from: owner, call: { kind: "batch", calls } });
  }
  world.note(`token ${tokenId} changes hands ${times} times`);
};

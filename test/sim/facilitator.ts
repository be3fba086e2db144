// A model of a facilitator: checks payments and submits them with its own account. It may be down, lose its answer, submit
// late or not at all, and say what is not so.
import type { Hex } from "viem";
import type { ModelChain, Tx } from "./chain.ts";
import { type SignedAuthorization, useKey, wordsOf } from "./contracts.ts";
import { type Answer, answer, failure } from "./http.ts";
import type { Runtime } from "./runtime.ts";

const ACCOUNT = `0x${"fa".repeat(20)}`;
const LOOKS = 8;
/** How long it waits for others to submit together. */
const BATCH_MS = 6_000;
const LATE_MS = { least: 5_000, most: 150_000 };

type Body = { paymentPayload: { payload: { signature: Hex; authorization: Record<string, string> } } };

export class ModelFacilitator {
  readonly #chain: ModelChain;
  readonly #runtime: Runtime;
  #together: Tx | null = null;

  constructor(chain: ModelChain, runtime: Runtime) {
    this.#chain = chain;
    this.#runtime = runtime;
  }

  async respond(path: string, body: string): Promise<Answer> {
    const { faults } = this.#runtime;
    this.#chain.advance();
    if (faults.strikes("facilitator_fails")) return failure(503, "Service Unavailable");
    if (faults.strikes("facilitator_hangs")) return "hangs";
    const authorization = readAuthorization(body);
    const problem = this.#problem(authorization);
    if (path === "/verify") {
      const isValid = (problem === null) !== faults.strikes("facilitator_lies");
      const invalidReason = problem ?? "invalid_exact_evm_payload_value";
      return answer(200, { isValid, payer: authorization.from, ...(isValid ? {} : { invalidReason }) });
    }
    return this.#settle(authorization, problem);
  }

  async #settle(authorization: SignedAuthorization, problem: string | null): Promise<Answer> {
    const { faults, clock, random, note } = this.#runtime;
    const said = { payer: authorization.from, network: "eip155:8453" };
    const refused = (errorReason: string) => answer(200, { success: false, errorReason, transaction: "", ...said });
    if (faults.strikes("facilitator_lies")) {
      note("the facilitator says what is not so");
      if (random.unit() < 0.5) return answer(200, { success: true, transaction: `0x${random.hex(64)}`, ...said });
      this.#submit(authorization);
      return refused("insufficient_funds");
    }
    if (problem !== null) return refused(problem);
    if (faults.strikes("facilitator_forgets")) return failure(502, "Bad Gateway");
    if (faults.strikes("facilitator_is_late")) {
      note("the facilitator submits late");
      clock.after(random.int(LATE_MS.least, LATE_MS.most), () => this.#submit(authorization));
      return refused("settlement_pending");
    }
    const { hash, minedIn } = this.#submit(authorization);
    if (faults.strikes("facilitator_loses_answer")) return failure(500, "Internal Server Error");
    for (let look = 0; look < LOOKS; look++) {
      await clock.sleep(1_000);
      this.#chain.advance();
      const block = [...minedIn].find((one) => this.#chain.blocks[one.number] === one);
      const done = block?.txs.find(({ tx }) => tx.hash === hash);
      if (done === undefined) continue;
      const { from, nonce } = authorization;
      const isTaken = done.success && this.#chain.head.state.used.has(useKey(from, nonce));
      return isTaken ? answer(200, { success: true, transaction: hash, ...said }) : refused("transaction_failed");
    }
    return "hangs";
  }

  #submit(authorization: SignedAuthorization) {
    const { faults, clock, note } = this.#runtime;
    if (faults.strikes("facilitator_batches")) {
      const waiting = this.#together;
      const call = { from: ACCOUNT, call: { kind: "take", authorization } as const };
      if (waiting?.intent.kind === "call" && waiting.intent.call.kind === "batch") {
        waiting.intent.call.calls.push(call);
        note("the facilitator submits several together");
        return waiting;
      }
      this.#together = this.#chain.hold({ kind: "call", from: ACCOUNT, call: { kind: "batch", calls: [call] } });
      const held = this.#together;
      clock.after(BATCH_MS, () => {
        if (this.#together === held) this.#together = null;
        this.#chain.send(held);
      });
      return held;
    }
    return this.#chain.submit({ kind: "call", from: ACCOUNT, call: { kind: "take", authorization } });
  }

  #problem(authorization: SignedAuthorization): string | null {
    const { state, timestamp } = this.#chain.head;
    const { from, value, validAfter, validBefore, nonce, signature } = authorization;
    if (this.#chain.signatures.get(signature) !== wordsOf(authorization)) return "invalid_exact_evm_payload_signature";
    if (timestamp <= validAfter) return "invalid_exact_evm_payload_authorization_valid_after";
    if (timestamp + 6 >= validBefore) return "invalid_exact_evm_payload_authorization_valid_before";
    if (state.used.has(useKey(from, nonce))) return "invalid_exact_evm_nonce_already_used";
    return (state.usdc.get(from) ?? 0n) < value ? "insufficient_funds" : null;
  }
}

function readAuthorization(body: string): SignedAuthorization {
  const { signature, authorization } = (JSON.parse(body) as Body).paymentPayload.payload;
  const { from = "", to = "", value = "0", validAfter, validBefore, nonce = "0x" } = authorization;
  return {
    from: from.toLowerCase(),
    to: to.toLowerCase(),
    value: BigInt(value),
    validAfter: Number(validAfter),
    validBefore: Number(validBefore),
    nonce: nonce as Hex,
    signature,
  };
}

// Worlds that cost somebody something once, each beside what was mended. What a seed plays changes with the simulator:
// after a change of its faults such a world is found anew by taking the decision away again (`npm run sim -- --plant …`).
import { FOUND_AT, type PlantName } from "./plants.ts";

export const FAILED_SEEDS: readonly { seed: number; story: string; plant?: PlantName }[] = [
  {
    seed: FOUND_AT.begin_where_the_logs_begin,
    plant: "begin_where_the_logs_begin",
    story: "the first sale, hidden by a node, had no earlier one to show the gap (begin_where_the_logs_begin)",
  },
  {
    seed: FOUND_AT.compare_no_owners,
    plant: "compare_no_owners",
    story: "a transfer that no log showed left the seller as the owner (compare_no_owners)",
  },
  {
    seed: FOUND_AT.keep_what_was_invented,
    plant: "keep_what_was_invented",
    story: "a sale that a node invented stood in for the one that it hid (keep_what_was_invented)",
  },
  {
    seed: FOUND_AT.wait_for_the_link,
    plant: "wait_for_the_link",
    story: "a machine that ended between its purchase and the link left its order waiting for ever (wait_for_the_link)",
  },
  {
    seed: 10_838,
    story: "an order was given up while a reorg had its purchase, and its machine ran on for nobody",
  },
  {
    seed: 81_202,
    story: "an order was given up while its purchase was being retired, and its machine went back to work for nobody",
  },
  { seed: 77_781, story: "a charge that a reorg undid for good waited to be paid back for ever" },
  { seed: 83_558, story: "an order was given up with a token that a reorg had changed, and changed back" },
  {
    seed: 86_214,
    story: "a node that lagged and one that lied made the wallet take its purchase for lost and buy a second token",
  },
  { seed: 88_080, story: "a deep reorg made another order's of the token that was on its way to a payer" },
  {
    seed: 103_196,
    story:
      "a deep reorg gave an order's purchase the token that another payer was being handed, and it waited for ever",
  },
  {
    seed: 282_949,
    story: "tokens left one after the other for one payment, each while the one before was signed and not mined yet",
  },
  {
    seed: 72_099,
    story:
      "a key that was used elsewhere had an order of before a pause sent anew, at another nonce, while payouts were paused",
  },
  {
    seed: 4_155,
    story:
      "a refund beyond its payer's share of a day's limit waited for the next day, and the world ended before that came",
  },
  {
    seed: 687,
    story:
      "after two rollbacks another order of the same payer got a token of the number that a refunded one had: the rule was wrong",
  },
  {
    seed: 1_568,
    story:
      "a reorg put a capture before the transfer that gave its payer the money: it reverted, and the payer was barred for it",
  },
  {
    seed: 1_422,
    story:
      "two nodes on an abandoned branch, where two sales had each other's tokens, ended a machine that was paid for; the model let such a node call its branch final, the product let one that lied about it do the same",
  },
];

// `npm run doctor -- chain`: the nodes, the contract, and what the wallet is good for.
import { type Address, formatEther } from "viem";
import { privateKeyToAddress } from "viem/accounts";
import { GAS_PER_TRANSACTION, LOW_TRANSACTIONS, readFees, readFunds } from "../../chain/account.ts";
import { type Chain, connectChain } from "../../chain/client.ts";
import { formatUsdc } from "../../chain/contract.ts";
import type { ProvisionerConfig } from "../../provisioner/config.ts";
import type { Settings } from "../settings.ts";
import { lookAtContract, lookAtDeployment, lookAtFunctions, type Tier } from "./contract.ts";
import { type Finding, missing, needed, note, type Part, well } from "./finding.ts";
import { type Asked, labelOf, lookAtAgreement, lookAtNode } from "./nodes.ts";
import { reasonOf } from "./reason.ts";

const LEAST_NODES = 3;

export const examineChain: Part = async (settings, now) => {
  const absent = {
    edge: missing(settings, "edge", "RPC_URLS"),
    provisioner: missing(settings, "provisioner", "RPC_URLS"),
  };
  if (absent.edge !== null && absent.provisioner !== null) return [absent.edge, absent.provisioner];
  const urls = [
    ...new Set([
      ...(absent.edge === null ? settings.edge.config.RPC_URLS : []),
      ...(absent.provisioner === null ? settings.provisioner.config.RPC_URLS : []),
    ]),
  ];
  const config = { ...settings.edge.config, RPC_URLS: urls };
  const chain = connectChain(config);
  const wallet = walletOf(settings);
  const asked: Asked = { config, chain, wallet, now };
  const looks = await Promise.all(
    chain.nodes.map((node, i) => lookAtNode(asked, node, labelOf(i, urls[i] ?? ""), urls[i] ?? "")),
  );
  const nodes = looks.map(({ looked }) => looked).filter(({ usable }) => usable);
  const findings = [
    ...[absent.edge, absent.provisioner].flatMap((one) => one ?? []),
    ...looks.flatMap((look) => look.findings),
    tellProviders(urls),
  ];
  if (nodes.length === 0) return findings;
  const contract = await lookAtContract(asked, nodes.some(({ final }) => final !== null) ? nodes : []);
  return [
    ...findings,
    await lookAtAgreement(nodes, config.RPC_TIMEOUT_MS),
    ...contract.findings,
    await lookAtFunctions(asked, nodes),
    await lookAtDeployment(asked, nodes, settings.edge.wrong.has("START_BLOCK")),
    ...(await lookAtWallet(settings, { ...chain, nodes: nodes.map(({ node }) => node) }, wallet, contract.tiers)),
  ];
};

/** The operator wallet's address; where its key is not here, the one that payments go to. */
function walletOf({ edge, provisioner }: Settings): Address | null {
  const key = provisioner.wrong.has("OPERATOR_PRIVATE_KEY") ? undefined : provisioner.config.OPERATOR_PRIVATE_KEY;
  return key === undefined ? (edge.config.X402_PAY_TO ?? null) : privateKeyToAddress(key);
}

function tellProviders(urls: readonly string[]): Finding {
  const providers = new Set(urls.map((url, i) => labelOf(i, url).replace(/^\S+ /, "")));
  const answer = `${urls.length} URLs of ${providers.size} providers`;
  if (providers.size >= LEAST_NODES) return well("RPC_URLS", answer);
  const todo = `Put URLs of three or more different providers into RPC_URLS of both files: two have to agree, and with ${providers.size} one failure stops everything.`;
  return needed("RPC_URLS", answer, todo);
}

async function lookAtWallet(
  settings: Settings,
  chain: Chain,
  wallet: Address | null,
  tiers: readonly Tier[],
): Promise<Finding[]> {
  const { config } = settings.provisioner;
  const what = "wallet";
  if (wallet === null) {
    const isNeeded = config.REFUNDS === "automatic" || settings.edge.config.X402_PAY_TO !== undefined;
    const absent = missing(settings, "provisioner", "OPERATOR_PRIVATE_KEY");
    return [
      isNeeded && absent !== null ? absent : note(what, "none: refunds are manual, and nothing is sold over x402"),
    ];
  }
  try {
    const { balance, wei } = await readFunds(chain, settings.edge.config.USDC_ADDRESS, wallet);
    const { maxFee } = await readFees(chain);
    return [tellCoins(config, wallet, balance, tiers), tellEther(wallet, wei, maxFee)];
  } catch (error) {
    const todo = `Mend the nodes first: the balances of ${wallet} can't be read from two of them (${reasonOf(error)}).`;
    return [needed(what, `not read: ${reasonOf(error)}`, todo)];
  }
}

function tellCoins(
  { LOW_FUNDS_USDC: low }: ProvisionerConfig,
  wallet: Address,
  balance: bigint,
  tiers: readonly Tier[],
): Finding {
  const sold = tiers.filter(({ active, pricePerDay }) => active && pricePerDay > 0n);
  const byPrice = [...sold].sort((a, b) => (a.pricePerDay < b.pricePerDay ? -1 : 1));
  const days = [byPrice[0], byPrice.at(-1)].flatMap((tier) => tier ?? []);
  const worth = days.map(({ tier, pricePerDay }) => `${balance / pricePerDay} days of tier ${tier}`).join(" or ");
  const answer = `${formatUsdc(balance)} USDC at ${wallet}${worth === "" ? "" : `: ${worth}`}`;
  if (balance >= low) return well("wallet's USDC", answer);
  const todo = `Send USDC to ${wallet}: it has ${formatUsdc(balance)}, and below ${formatUsdc(low)} (LOW_FUNDS_USDC) it pages.`;
  return needed("wallet's USDC", answer, todo);
}

function tellEther(wallet: Address, wei: bigint, maxFee: bigint): Finding {
  const cost = GAS_PER_TRANSACTION * maxFee;
  const count = cost === 0n ? 0n : wei / cost;
  const answer = `${Number(formatEther(wei)).toFixed(6)} ether: about ${count} transactions at the fees of now`;
  if (cost === 0n || count >= LOW_TRANSACTIONS) return well("wallet's ether", answer);
  const least = Number(formatEther(cost * LOW_TRANSACTIONS)).toPrecision(2);
  const todo = `Send ether to ${wallet}: it has enough for ${count} transactions, and below ${LOW_TRANSACTIONS} (${least} ether) it pages.`;
  return needed("wallet's ether", answer, todo);
}

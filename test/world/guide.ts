// What a person or a script is told of a world that is up.
import { color } from "./narrator.ts";
import type { World } from "./world.ts";

/** Everything that a script needs. The keys hold play money of this world. */
export function describe(up: World) {
  return {
    url: up.url,
    chainId: up.chain.chainId,
    rpcUrls: up.rpcUrls,
    rpcControlUrl: up.proxy.controlUrl,
    contract: up.contract,
    usdc: up.usdc,
    accounts: up.chain.agents.map((agent) => ({ address: agent.address, privateKey: keyOf(agent) })),
    deployer: { address: up.chain.deployer.address, privateKey: keyOf(up.chain.deployer) },
    adminKey: up.adminKey,
    pagesUrl: `${up.pager.url}/pages`,
    vultr: { apiUrl: up.vultr.apiUrl, controlUrl: up.vultr.controlUrl, sshPort: up.sshPort },
    runpod: { apiUrl: up.runpod.apiUrl, controlUrl: up.runpod.controlUrl },
    facilitator: { url: up.facilitator.url, controlUrl: up.facilitator.controlUrl },
  };
}

function keyOf(account: World["chain"]["deployer"]): string {
  const key = account.getHdKey().privateKey;
  return key === null ? "" : `0x${Buffer.from(key).toString("hex")}`;
}

export function printGuide(up: World): void {
  const info = describe(up);
  const [account] = info.accounts;
  console.log(`
${color("bold", "The world is up.")} Ctrl-C ends it.
  API       ${info.url}    docs ${info.url}/docs    for agents ${info.url}/llms.txt
  chain     id ${info.chainId}, RPC ${info.rpcUrls.join(" ")}
  contract  ${info.contract}    USDC ${info.usdc}
  accounts  (play money)
${info.accounts.map(({ address, privateKey }) => `            ${address}  ${privateKey}`).join("\n")}

  operator  CLAWCLOUD_URL=${info.url} CLAWCLOUD_ADMIN_KEY=${info.adminKey} npm run admin -- vms list

  controls  Vultr ${info.vultr.controlUrl}    RunPod ${info.runpod.controlUrl}    RPC ${info.rpcControlUrl}
            facilitator ${info.facilitator.controlUrl}

${color("bold", "To try")}
  curl ${info.url}/tiers
  curl ${info.url}/vms/${account?.address}
  curl ${info.vultr.controlUrl}/machines
  ${color("dim", "# the next machine order at Vultr finds nothing in stock in ewr:")}
  curl -X POST ${info.vultr.controlUrl}/faults -d '{"call":"create","kind":"sold_out","region":"ewr","times":1}'
`);
}

/** The operators' checks of a deployment, against this world by its settings in `folder`. */
export function printChecks(up: World, folder: string): void {
  const { url, adminKey, accounts } = describe(up);
  const keys = `CLAWCLOUD_URL=${url} CLAWCLOUD_ADMIN_KEY=${adminKey} SMOKE_PRIVATE_KEY=${accounts[0]?.privateKey}`;
  console.log(`  npm run doctor -- --folder ${folder} chain vultr runpod x402
  ${keys} npm run smoke -- --folder ${folder}
`);
}

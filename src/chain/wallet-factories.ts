// Smart wallet factories that may run in an `eth_call` for a wallet that is not deployed yet (ERC-6492). A factory has the same
// address on every chain.
import type { Address } from "viem";

/** The default of WALLET_FACTORIES. */
export const KNOWN_FACTORIES: readonly Address[] = [
  // Coinbase Smart Wallet 1 and 1.1: github.com/coinbase/smart-wallet, README, "Deployments".
  "0x0BA5ED0c6AA8c49038F819E587E2633c4A9F428a",
  "0xBA5ED110eFDBa3D005bfC882d75358ACBbB85842",
  // Safe 1.3.0, 1.4.1 and 1.5.0: github.com/safe-global/safe-deployments, src/assets/*/*proxy_factory.json, "canonical".
  "0xa6B71E26C5e0845f74c812102Ca7114b6a896AB2",
  "0x4e1DCf7AD4e460CfD30791CCC4F9c8a4f820ec67",
  "0x14F2982D601c9458F93bd70B218933A6f8165e7b",
  // ZeroDev Kernel 3, its meta factory: github.com/zerodevapp/kernel, README, "Addresses".
  "0xd703aaE79538628d27099B8c4f621bE4CCd142d5",
  // Alchemy Light Account 1.1 and 2.0: github.com/alchemyplatform/light-account, "Deployments".
  "0x00004EC70002a32400f8ae005A26081065620D20",
  "0x0000000000400CdFef5E2714E63d8040b700BC24",
  // SimpleAccount of the EntryPoints 0.6, 0.7 and 0.8: github.com/pimlicolabs/permissionless.js, toSimpleSmartAccount.
  "0x9406Cc6185a346906296840746125a0E44976454",
  "0x91E60e0613810449d098b0b5Ec8b51A0FE8c8985",
  "0x13E9ed32155810FDbd067D4522C492D6f68E5944",
];

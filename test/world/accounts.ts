// The accounts of Foundry's and Hardhat's public mnemonic ("test test … junk"), which hold play money and nothing else,
// anywhere.
import { type HDAccount, HDKey, hdKeyToAccount } from "viem/accounts";

/** What BIP-39 makes of the mnemonic: to work it out takes longer than all else of an account. */
const SEED =
  "9dfc3c64c2f8bede1533b6a79f8570e5943e0b8fd1cf77107adf7b72cef42185d564a3aee24cab43f80e3c4538087d70fc824eabbad596a23c97b6ee8322ccc0";
const root = HDKey.fromMasterSeed(Uint8Array.from(SEED.match(/../g) ?? [], (byte) => Number.parseInt(byte, 16)));

export const developmentAccount = (addressIndex: number): HDAccount => hdKeyToAccount(root, { addressIndex });

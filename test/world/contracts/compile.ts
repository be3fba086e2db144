// Compiles the contracts of the local world. `npm run contracts` rewrites artifacts.json; a test holds it to the sources.
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import solc from "solc";

const path = (file: string) => fileURLToPath(new URL(file, import.meta.url).href);
const require = createRequire(import.meta.url);
const SOURCES = [
  "ClawCloudVMs.sol",
  "UsdCoin.sol",
  "Multicall3.sol",
  "EventLayouts.sol",
  "SalesHistory.sol",
  "SmartWallet.sol",
  "HostileWallets.sol",
];
const CONTRACTS = [
  "ClawCloudVMs",
  "UsdCoin",
  "Multicall3",
  "NothingIndexed",
  "TokenIndexed",
  "SalesHistory",
  "SmartWalletFactory",
  "FickleWallet",
  "GasBurner",
  "TokenStorm",
] as const;

export type Artifacts = Record<(typeof CONTRACTS)[number], { abi: unknown[]; bytecode: string }>;

type Output = {
  errors?: { severity: string; formattedMessage: string }[];
  contracts: Record<string, Record<string, { abi: unknown[]; evm: { bytecode: { object: string } } }>>;
};

/** Compiles from source; throws with the compiler's own message on any error. */
export function compileContracts(): Artifacts {
  const input = {
    language: "Solidity",
    sources: Object.fromEntries(SOURCES.map((file) => [file, { content: readFileSync(path(file), "utf8") }])),
    settings: {
      optimizer: { enabled: true, runs: 200 },
      evmVersion: "cancun",
      metadata: { bytecodeHash: "none" },
      outputSelection: { "*": { "*": ["abi", "evm.bytecode.object"] } },
    },
  };
  const findImport = (path: string) => ({ contents: readFileSync(require.resolve(path), "utf8") });
  const output = JSON.parse(solc.compile(JSON.stringify(input), { import: findImport })) as Output;
  const failures = (output.errors ?? []).filter((error) => error.severity === "error");
  if (failures.length > 0) throw new Error(failures.map((error) => error.formattedMessage).join("\n"));
  const compiled = Object.assign({}, ...Object.values(output.contracts)) as Output["contracts"][string];
  return Object.fromEntries(
    CONTRACTS.map((name) => {
      const contract = compiled[name];
      if (contract === undefined) throw new Error(`the compiler returned no ${name}`);
      return [name, { abi: contract.abi, bytecode: `0x${contract.evm.bytecode.object}` }];
    }),
  ) as Artifacts;
}

if (import.meta.main) {
  writeFileSync(path("artifacts.json"), `${JSON.stringify(compileContracts(), null, 1)}\n`);
}

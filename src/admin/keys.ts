// `npm run keys`: makes the secrets that a deployment makes for itself, and the two files that hold them.
import { randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { secp256k1 } from "@noble/curves/secp256k1.js";
import { bytesToHex } from "@noble/hashes/utils.js";
import { program } from "commander";
import { privateKeyToAddress } from "viem/accounts";
import { makeAdminKey } from "../credentials/admin-key.ts";
import { dataKeyId } from "../credentials/ecies.ts";

/** As standardwebhooks.com has it. */
const webhookSecret = () => `whsec_${randomBytes(32).toString("base64")}`;

program
  .name("npm run keys --")
  .description(
    "Makes the data key, the operator wallet and the first admin key, each into the file of the Worker that holds it.",
  )
  .option("--out <folder>", "where the files go; none that exists is overwritten", ".secrets")
  .action(async ({ out }: { out: string }) => {
    const dataKey = secp256k1.keygen();
    const operatorKey = bytesToHex(secp256k1.utils.randomSecretKey());
    // Empty ones are for you to fill in.
    const files = {
      edge: {
        RPC_URLS: "",
        DATA_PRIVATE_KEY: bytesToHex(dataKey.secretKey),
        ADMIN_API_KEY: makeAdminKey(),
        ALERT_WEBHOOK_SECRET: webhookSecret(),
      },
      provisioner: {
        RPC_URLS: "",
        DATA_PUBLIC_KEY: bytesToHex(dataKey.publicKey),
        VULTR_API_KEY: "",
        RUNPOD_API_KEY: "",
        OPERATOR_PRIVATE_KEY: operatorKey,
      },
    };
    await mkdir(out, { recursive: true, mode: 0o700 });
    const paths = Object.entries(files).map(([worker, secrets]) => [join(out, `${worker}.json`), secrets] as const);
    for (const [path] of paths) {
      // Both or none: half a pair would seal what nobody can open.
      if (existsSync(path)) {
        program.error(
          `${path} exists: a new data key would not open what the old one sealed. Move both files away first.`,
        );
      }
    }
    for (const [path, secrets] of paths) {
      await writeFile(path, `${JSON.stringify(secrets, null, 2)}\n`, { mode: 0o600, flag: "wx" });
    }
    console.log(`Secrets are in ${join(out, "edge.json")} and ${join(out, "provisioner.json")}, readable by you alone.

  data key         ${dataKeyId(dataKey.publicKey)} (its id; the private half goes to the edge, the public half to the provisioner)
  operator wallet  ${privateKeyToAddress(`0x${operatorKey}`)} (X402_PAY_TO of the edge, where you sell over x402)
  admin key        in edge.json: "npm run admin -- keys create <name> --first" makes the first operator's key with it
  webhook secret   in edge.json: for whoever checks the alerts that ALERT_WEBHOOK_URL gets

Fill in RPC_URLS in both, VULTR_API_KEY and RUNPOD_API_KEY in provisioner.json; "npm run deploy" uploads them.
Keep a copy of both files off this machine: without the data key no stored SSH key can be opened.`);
  });
await program.parseAsync();

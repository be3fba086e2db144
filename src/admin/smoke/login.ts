// The token's owner asks for the login by a fresh signature, and logs in.
import { randomUUID } from "node:crypto";
import ssh2 from "ssh2";
import type { PrivateKeyAccount } from "viem/accounts";
import { z } from "zod";
import type { EdgeConfig } from "../../edge/config.ts";
import { inTime } from "../../in-time.ts";
import { networkReason } from "../network.ts";

const LOGIN_MS = 30_000;
const COMMAND_MS = 60_000;

const credentialsSchema = z.object({
  host: z.string(),
  username: z.string(),
  ssh: z.object({ port: z.number(), privateKey: z.string(), knownHosts: z.string().nullable() }),
});
export type Credentials = z.output<typeof credentialsSchema>;

/** What signs and what it signs for: src/edge/README.md, "Signatures and keys". */
export async function freshHeaders(
  account: PrivateKeyAccount,
  config: Pick<EdgeConfig, "CHAIN_ID" | "CONTRACT_ADDRESS">,
  url: string,
  tokenId: number,
  now: number,
): Promise<Record<string, string>> {
  const fields = {
    Domain: new URL(url).host,
    URI: `${url}/credentials/${tokenId}`,
    "Chain ID": String(config.CHAIN_ID),
    Contract: config.CONTRACT_ADDRESS,
    Nonce: randomUUID().replaceAll("-", ""),
    "Issued At": new Date(now).toISOString(),
  };
  const lines = Object.entries(fields).map(([name, value]) => `${name}: ${value}`);
  const message = [`ClawCloud Access Request: ${tokenId}`, ...lines].join("\n");
  return {
    authorization: `Bearer ${await account.signMessage({ message })}`,
    "x-access-message": Buffer.from(message).toString("base64"),
  };
}

/** Throws where the answer has no key to log in with. */
export function readCredentials(body: unknown): Credentials {
  const read = credentialsSchema.safeParse(body);
  if (read.success) return read.data;
  throw new Error("The answer of /credentials has no login key in it.");
}

/** Runs a command as the delivered key's owner, on the host whose key was delivered; resolves with what it prints. */
export async function runOverSsh(credentials: Credentials, command: string, limitMs = COMMAND_MS): Promise<string> {
  const client = new ssh2.Client();
  try {
    // A machine that takes the login and says nothing must not keep the caller from ending it.
    return await inTime(run(client, credentials, command), limitMs, () => new Error("no answer over SSH in time"));
  } finally {
    client.destroy();
  }
}

function run(client: ssh2.Client, { host, username, ssh }: Credentials, command: string): Promise<string> {
  const expected = ssh.knownHosts?.split(" ")[2];
  return new Promise((resolve, reject) => {
    client
      .on("ready", () => {
        client.exec(command, (error, channel) => {
          if (error !== undefined) return reject(error);
          let output = "";
          channel.on("data", (data: Buffer) => {
            output += data.toString();
          });
          channel.on("close", () => resolve(output));
        });
      })
      .on("error", (error) => reject(new Error(reasonOfSsh(error))))
      .connect({
        host,
        port: ssh.port,
        username,
        privateKey: ssh.privateKey,
        readyTimeout: LOGIN_MS,
        hostVerifier: (key: Buffer) => key.toString("base64") === expected,
      });
  });
}

const SSH_REASONS: Readonly<Record<string, string>> = {
  "client-authentication": "the machine does not take the delivered key",
  "client-timeout": "the machine gives no login in time",
  handshake: "the machine shows another host key than the delivered one",
};

const reasonOfSsh = (error: Error & { level?: string }): string =>
  SSH_REASONS[error.level ?? ""] ?? `SSH to the machine fails: ${networkReason(error) ?? "it ends the connection"}`;

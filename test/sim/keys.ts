// Login and host keys that cost nothing and tell by their number which pair they are of. Stands in for
// src/credentials/ssh-keys.ts.
import { utf8ToBytes } from "@noble/hashes/utils.js";

export const SSH_KEY_ALGORITHMS = ["rsa-4096", "ed25519"] as const;
let made = 0;

export const restartKeys = (): void => {
  made = 0;
};

const next = (): string => {
  made += 1;
  return `simulated-${made}`;
};

export async function generateSshKeyPair(): Promise<{ privateKey: Uint8Array; publicKey: string }> {
  const name = next();
  return { privateKey: utf8ToBytes(`private half of ssh-ed25519 ${name}`), publicKey: `ssh-ed25519 ${name}` };
}

export function generateHostKey(): { privateKey: string; publicKey: string } {
  const name = next();
  return { privateKey: `host key ${name}`, publicKey: `ssh-ed25519 ${name}` };
}

export const parsePublicKey = (text: string): { line: string } | { problem: string } =>
  /^ssh-ed25519 simulated-\w+$/.test(text) ? { line: text } : { problem: "must be a key of the simulator's" };
export const formatPrivateKey = (stored: Uint8Array): string => new TextDecoder().decode(stored);
export const fingerprint = (publicKey: string): string => publicKey;
export const knownHostsLine = (host: string, port: number, publicKey: string): string => `${host} ${port} ${publicKey}`;

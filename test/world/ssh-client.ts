import ssh2 from "ssh2";
import type { Credentials } from "./agent.ts";

type Login = Pick<Credentials, "host" | "username"> & {
  ssh: Pick<Credentials["ssh"], "port" | "privateKey" | "knownHosts">;
};

/** Runs one command over SSH with the delivered key, checking the delivered host key. */
export function runOverSsh(credentials: Login, command: string): Promise<{ output: string; code: number }> {
  const { host, username, ssh } = credentials;
  if (ssh.privateKey === null) throw new Error("the credentials carry no private key");
  const privateKey = ssh.privateKey;
  const expected = ssh.knownHosts?.split(" ")[2];
  return new Promise((resolve, reject) => {
    const client = new ssh2.Client();
    client
      .on("ready", () => {
        client.exec(command, (error, channel) => {
          if (error !== undefined) return reject(error);
          let output = "";
          let code = 0;
          channel.on("data", (data: Buffer) => {
            output += data.toString();
          });
          channel.stderr.on("data", (data: Buffer) => {
            output += data.toString();
          });
          channel.on("exit", (status: number) => {
            code = status;
          });
          channel.on("close", () => {
            client.end();
            resolve({ output, code });
          });
        });
      })
      .on("error", reject)
      .connect({
        host,
        port: ssh.port,
        username,
        privateKey,
        readyTimeout: 30_000,
        hostVerifier: (key: Buffer) => expected === undefined || key.toString("base64") === expected,
      });
  });
}

/** A login key pair as `ssh-keygen -t ed25519` makes one. Of some 300 that ssh2 makes, one is read by no program. */
export function makeLoginPair(): { public: string; private: string } {
  for (;;) {
    const pair = ssh2.utils.generateKeyPairSync("ed25519");
    if (!(ssh2.utils.parseKey(pair.private) instanceof Error)) return pair;
  }
}

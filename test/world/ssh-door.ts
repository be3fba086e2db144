// The SSH server of a simulated machine: a real one (ssh2), with the keys that the vendor was given and nothing else.
import { generateKeyPairSync } from "node:crypto";
import ssh2 from "ssh2";

export type Hardware = { name: string; vcpu: number; memoryMb: number; gpu: string | null };
export type DoorKeys = {
  /** OpenSSH private key that the server presents; a fresh one when null, as an image's first boot makes it. */
  hostKey: string | null;
  /** authorized_keys lines of root. */
  authorizedKeys: readonly string[];
  /** What follows the version in the banner (sshd_config's VersionAddendum). */
  addendum: string;
};

const VERSION = "OpenSSH_9.6p1";

/** Opens a door at host:port (0: any free one). Resolves with the port once it listens. */
export async function openDoor(host: string, port: number, hardware: Hardware, keys: DoorKeys) {
  const allowed = keys.authorizedKeys
    .map((line) => ssh2.utils.parseKey(line))
    .filter((key): key is ssh2.ParsedKey => !(key instanceof Error));
  const connections = new Set<ssh2.Connection>();
  const server = new ssh2.Server(
    { hostKeys: [keys.hostKey ?? stockHostKey()], ident: `${VERSION} ${keys.addendum}`.trim() },
    (connection) => {
      connections.add(connection);
      connection.on("close", () => connections.delete(connection));
      connection.on("error", () => undefined);
      connection.on("authentication", (auth) => {
        const matches = (key: ssh2.ParsedKey) =>
          auth.method === "publickey" &&
          key.getPublicSSH().equals(auth.key.data) &&
          (auth.signature === undefined ||
            (auth.blob !== undefined && key.verify(auth.blob, auth.signature, auth.hashAlgo) === true));
        if (auth.username === "root" && allowed.some(matches)) auth.accept();
        else auth.reject(["publickey"]);
      });
      connection.on("ready", () => connection.on("session", (accept) => serveSession(accept(), hardware)));
    },
  );
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(port, host, () => resolve());
  });
  const address = server.address();
  return {
    port: typeof address === "object" && address !== null ? address.port : port,
    close: () =>
      new Promise<void>((resolve) => {
        for (const connection of connections) connection.end();
        server.close(() => resolve());
      }),
  };
}

export type Door = Awaited<ReturnType<typeof openDoor>>;

function serveSession(session: ssh2.Session, hardware: Hardware): void {
  session.on("pty", (accept) => accept?.());
  session.on("env", (accept) => accept?.());
  session.on("exec", (accept, _reject, info) => {
    const channel = accept();
    const { output, code } = runCommand(info.command, hardware);
    if (code === 0) channel.write(output);
    else channel.stderr.write(output);
    channel.exit(code);
    channel.end();
  });
  session.on("shell", (accept) => {
    const channel = accept();
    const prompt = `root@${hardware.name}:~# `;
    let line = "";
    channel.write(`Welcome to ${hardware.name}\r\n${prompt}`);
    channel.on("data", (data: Buffer) => {
      for (const char of data.toString()) {
        if (char !== "\r" && char !== "\n") {
          line += char;
          channel.write(char);
          continue;
        }
        const command = line.trim();
        line = "";
        if (command === "exit") {
          channel.write("\r\n");
          channel.exit(0);
          channel.end();
          return;
        }
        channel.write(`\r\n${runCommand(command, hardware).output.replaceAll("\n", "\r\n")}${prompt}`);
      }
    });
  });
}

function runCommand(command: string, hardware: Hardware): { output: string; code: number } {
  const { name, vcpu, memoryMb, gpu } = hardware;
  const answers: Record<string, string | null> = {
    "": "",
    "uname -a": `Linux ${name} 6.8.0-45-generic #45-Ubuntu SMP x86_64 GNU/Linux\n`,
    whoami: "root\n",
    hostname: `${name}\n`,
    nproc: `${vcpu}\n`,
    "free -m": [
      "               total        used        free      shared  buff/cache   available",
      `Mem:${String(memoryMb).padStart(16)}${String(Math.round(memoryMb * 0.2)).padStart(12)}${String(Math.round(memoryMb * 0.7)).padStart(12)}           1${String(Math.round(memoryMb * 0.1)).padStart(12)}${String(Math.round(memoryMb * 0.75)).padStart(12)}\n`,
    ].join("\n"),
    "nvidia-smi":
      gpu === null ? null : `| NVIDIA-SMI 550.90  Driver Version: 550.90  CUDA Version: 12.4 |\n| 0  ${gpu} |\n`,
  };
  const echoed = /^echo (.*)$/.exec(command)?.[1];
  const output = echoed === undefined ? answers[command.trim()] : `${echoed}\n`;
  return output === undefined || output === null
    ? { output: `bash: ${command.split(" ")[0]}: command not found\n`, code: 127 }
    : { output, code: 0 };
}

// An image's own host key differs from machine to machine; one per process is enough to differ from any of ours.
let stock: string | undefined;
function stockHostKey(): string {
  stock ??= generateKeyPairSync("rsa", {
    modulusLength: 2048,
    privateKeyEncoding: { type: "pkcs1", format: "pem" },
    publicKeyEncoding: { type: "spki", format: "pem" },
  }).privateKey;
  return stock;
}

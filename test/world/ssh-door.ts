// The SSH server of a simulated machine: a real one (ssh2), with the keys that the vendor was given and nothing else. Behind
// it are a small shell and an SFTP server, on a disk in memory.
import { generateKeyPairSync } from "node:crypto";
import { StringDecoder } from "node:string_decoder";
import { stripVTControlCharacters } from "node:util";
import ssh2 from "ssh2";
import { type Disk, type DiskFile, makeDisk, textFile } from "./disk.ts";
import { serveSftp } from "./sftp.ts";
import { type Hardware, makeShell, readsInput, type Shell } from "./shell.ts";

export type { Hardware };
export type DoorKeys = {
  /** OpenSSH private key that the server presents; a fresh one when null, as an image's first boot makes it. */
  hostKey: string | null;
  /** authorized_keys lines of root. */
  authorizedKeys: readonly string[];
  /** What follows the version in the banner (sshd_config's VersionAddendum). */
  addendum: string;
  /** What lies on the machine's disk beside what every machine has. */
  files?: readonly DiskFile[];
};

const VERSION = "OpenSSH_9.6p1";
/** What one command may be given on its standard input, and how long a line may be that is typed. */
const MAX_INPUT_BYTES = 4 * 1_024 ** 2;
const MAX_LINE = 65_536;

type Machine = { disk: Disk; hardware: Hardware; bootedAt: number };

/** Opens a door at host:port (0: any free one). Resolves with the port once it listens. */
export async function openDoor(host: string, port: number, hardware: Hardware, keys: DoorKeys) {
  const allowed = keys.authorizedKeys
    .map((line) => ssh2.utils.parseKey(line))
    .filter((key): key is ssh2.ParsedKey => !(key instanceof Error));
  const disk = makeDisk([...usualFiles(hardware, keys), ...(keys.files ?? [])]);
  const machine = { disk, hardware, bootedAt: Date.now() };
  const connections = new Set<ssh2.Connection>();
  const server = new ssh2.Server(
    {
      hostKeys: [keys.hostKey ?? stockHostKey()],
      ident: `${VERSION} ${keys.addendum}`.trim(),
      // Without chacha20, OpenSSH's first choice, which takes this server four times as long as these.
      algorithms: { cipher: ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes256-ctr"] },
    },
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
      connection.on("ready", () => connection.on("session", (accept) => serveSession(accept(), machine)));
    },
  );
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(port, host, () => resolve());
  });
  const address = server.address();
  return {
    port: typeof address === "object" && address !== null ? address.port : port,
    /** What opens the same door again, its disk as it is now. */
    save: (): DoorKeys => ({ ...keys, files: disk.save() }),
    close: () =>
      new Promise<void>((resolve) => {
        for (const connection of connections) connection.end();
        server.close(() => resolve());
      }),
  };
}

/** Whether it is the door of a machine that has booted to the end. */
export const isConfigured = (keys: DoorKeys | null): keys is DoorKeys => (keys?.authorizedKeys.length ?? 0) > 0;

export type Door = Awaited<ReturnType<typeof openDoor>>;

const usualFiles = ({ name }: Hardware, { authorizedKeys }: DoorKeys): DiskFile[] => [
  textFile("/etc/hostname", `${name}\n`),
  textFile("/etc/os-release", 'PRETTY_NAME="Ubuntu 24.04 LTS (simulated)"\nID=ubuntu\nVERSION_ID="24.04"\n'),
  textFile("/root/.ssh/authorized_keys", authorizedKeys.map((key) => `${key}\n`).join(""), 0o600),
];

const messageOfTheDay = ({ hardware, disk }: Machine): string =>
  [
    `Welcome to ${hardware.name}.`,
    "This machine is SIMULATED, a part of the local world: its disk is in memory, and no program runs on it but a small shell.",
    "Type help for its commands; scp and sftp work.",
    ...(disk.has("/root/CLAWCLOUD.md") ? ["What a real machine tells its owner: cat CLAWCLOUD.md"] : []),
    "",
  ].join("\r\n");

function serveSession(session: ssh2.Session, machine: Machine): void {
  const shell = makeShell(machine.disk, machine.hardware, machine.bootedAt);
  let hasTerminal = false;
  session.on("pty", (accept) => {
    hasTerminal = true;
    accept?.();
  });
  session.on("window-change", (accept) => accept?.());
  session.on("env", (accept) => accept?.());
  session.on("sftp", (accept) => serveSftp(accept(), machine.disk));
  session.on("exec", (accept, _reject, info) => {
    const channel = accept();
    if (!readsInput(info.command)) return answer(channel, shell, info.command, "");
    collect(channel, (input) => answer(channel, shell, info.command, input));
  });
  session.on("shell", (accept) => {
    const channel = accept();
    // Without a terminal a shell reads a script.
    if (hasTerminal) serveTerminal(channel, shell, messageOfTheDay(machine));
    else collect(channel, (script) => answer(channel, shell, script, ""));
  });
}

function answer(channel: ssh2.ServerChannel, shell: Shell, line: string, input: string): void {
  const { out, err, code } = shell.run(line, input);
  channel.write(out);
  channel.stderr.write(err);
  leave(channel, code);
}

function leave(channel: ssh2.ServerChannel, code: number): void {
  channel.exit(code);
  channel.end();
}

function collect(channel: ssh2.ServerChannel, then: (text: string) => void): void {
  const parts: Buffer[] = [];
  let bytes = 0;
  channel.on("data", (data: Buffer) => {
    bytes += data.length;
    if (bytes <= MAX_INPUT_BYTES) parts.push(data);
  });
  channel.on("end", () => {
    if (bytes <= MAX_INPUT_BYTES) return then(Buffer.concat(parts).toString());
    channel.stderr.write("bash: the simulated machine takes 4 MB of input at most\n");
    leave(channel, 1);
  });
}

/** Reads what is typed, key by key, and shows it. */
function serveTerminal(channel: ssh2.ServerChannel, shell: Shell, greeting: string): void {
  const decoder = new StringDecoder();
  let line = "";
  let previous = "";
  let isOver = false;
  const show = (text: string) => channel.write(text.replaceAll("\n", "\r\n"));
  const end = (code: number) => {
    isOver = true;
    leave(channel, code);
  };
  const enter = () => {
    const { out, err, exit } = shell.run(line);
    line = "";
    show(`\n${out}${err}`);
    if (exit === null) show(shell.prompt());
    else end(exit);
  };
  const keys: Record<string, () => void> = {
    "\r": enter,
    "\n": () => previous !== "\r" && enter(),
    // Backspace, Ctrl-C and Ctrl-D.
    "\u007f": () => {
      if (line === "") return;
      line = Array.from(line).slice(0, -1).join("");
      show("\b \b");
    },
    "\u0003": () => {
      line = "";
      show(`^C\n${shell.prompt()}`);
    },
    "\u0004": () => {
      if (line !== "") return;
      show("logout\n");
      end(shell.lastCode());
    },
  };
  show(`${greeting}\n${shell.prompt()}`);
  channel.on("data", (data: Buffer) => {
    // Arrows and other keys that send a sequence do nothing.
    for (const key of stripVTControlCharacters(decoder.write(data))) {
      if (isOver) return;
      const act = keys[key];
      if (act !== undefined) act();
      else if (key >= " " && line.length < MAX_LINE) {
        line += key;
        show(key);
      }
      previous = key;
    }
  });
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

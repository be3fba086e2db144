// A simulated machine as its tenant uses it: the real OpenSSH programs against its shell and its disk.
import { execFile, spawn, spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, test } from "vitest";
import { textFile } from "../world/disk.ts";
import { makeLoginPair } from "../world/ssh-client.ts";
import { type Door, openDoor } from "../world/ssh-door.ts";

const run = promisify(execFile);
const missing = ["ssh", "scp", "sftp", "script"].filter((name) => spawnSync("which", [name]).status !== 0);
if (missing.length > 0) console.warn(`SKIPPED: nobody logs in to a simulated machine here, without ${missing.join()}`);

const HARDWARE = { name: "clawcloud-local-7", vcpu: 2, memoryMb: 4_096, gpu: null };
const BIG_BYTES = 300_000;
/** Leaves room for two such files on the machine's disk, and not for three. */
const BALLAST_BYTES = 3_400_000;
const folder = mkdtempSync(join(tmpdir(), "clawcloud-door-"));
let door: Door;

beforeAll(async () => {
  const pair = makeLoginPair();
  writeFileSync(join(folder, "key"), pair.private, { mode: 0o600 });
  const files = [
    textFile("/root/CLAWCLOUD.md", "# Your machine\n"),
    textFile("/var/ballast", "-".repeat(BALLAST_BYTES)),
  ];
  const keys = { hostKey: null, authorizedKeys: [pair.public], addendum: "mark", files };
  door = await openDoor("127.0.0.1", 0, HARDWARE, keys);
});
afterAll(async () => {
  await door?.close();
  rmSync(folder, { recursive: true, force: true });
});

const options = () =>
  ["BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
    .flatMap((option) => ["-o", option])
    .concat("-F", "none", "-i", "key");
const login = () => [...options(), "-p", String(door.port), "root@127.0.0.1"];
type Ended = { stdout: string; stderr: string; code: number };

/** Runs a program in the test's folder; ends with its code, whatever that is. */
async function ends(program: string, args: readonly string[], input = ""): Promise<Ended> {
  const promise = run(program, args, { cwd: folder, timeout: 60_000 });
  promise.child.stdin?.end(input);
  return promise.then(
    ({ stdout, stderr }) => ({ stdout, stderr, code: 0 }),
    (error: Ended) => ({ stdout: error.stdout, stderr: error.stderr, code: error.code }),
  );
}
const ssh = (command: string, input?: string) => ends("ssh", [...login(), command], input);

test.skipIf(missing.length > 0)("commands, redirections and exit codes are those of a shell", async () => {
  const lines = [
    "cd /tmp && mkdir -p a/b && echo \"hello  $USER\" > a/b/f && echo '$HOME' >> a/b/f; cat a/b/f; pwd",
    "ls a; rm a; rm -r a; echo $?; ls /tmp; touch ~/x; rm x ~/x; false || echo no && echo yes | cat",
    "nosuch; cat gone 2>&1; echo lost > /no/where",
  ];
  expect(await ssh(lines.join("\n"))).toEqual({
    stdout: "hello  root\n$HOME\n/tmp\nb\n0\nno\nyes\ncat: gone: No such file or directory\n",
    stderr: [
      "rm: a: Is a directory",
      "rm: x: No such file or directory",
      "bash: nosuch: command not found",
      "bash: /no/where: No such file or directory\n",
    ].join("\n"),
    code: 1,
  });
  expect(await ssh("exit 7")).toMatchObject({ code: 7 });
  expect(await ssh("nosuch")).toMatchObject({ code: 127 });
  expect(await ssh("echo `id`")).toMatchObject({
    stdout: "",
    code: 2,
    stderr: expect.stringContaining("does not understand: `id`"),
  });
});

test.skipIf(missing.length > 0)("the machine tells of itself", async () => {
  const { stdout } = await ssh("whoami; nproc; df -h; free -m; uptime; cat CLAWCLOUD.md /etc/hostname");
  expect(stdout).toMatch(/^root\n2\nFilesystem .*\nsimulated .* \/\n +total .*\nMem: +4096 /);
  expect(stdout).toMatch(/ up 0:0\d, .*\n# Your machine\nclawcloud-local-7\n$/);
});

test.skipIf(missing.length > 0)("standard input reaches a file, and a script without a terminal is run", async () => {
  expect(await ssh("cat > in.txt", "äö\n")).toEqual({ stdout: "", stderr: "", code: 0 });
  const script = await ends("ssh", ["-T", ...login()], "cat in.txt\nrm in.txt\nexit 3\necho late\n");
  expect(script).toEqual({ stdout: "äö\n", stderr: "", code: 3 });
});

test.skipIf(missing.length > 0)(
  "scp and sftp carry files and folders in both directions, up to the disk's size",
  async () => {
    mkdirSync(join(folder, "d/e"), { recursive: true });
    writeFileSync(join(folder, "d/e/f"), Buffer.alloc(BIG_BYTES, "0123456789abcdef-"));
    const scp = (...paths: string[]) => ends("scp", ["-q", "-r", ...options(), "-P", String(door.port), ...paths]);
    expect(await scp("d", "root@127.0.0.1:/tmp")).toMatchObject({ code: 0 });
    expect(await scp("root@127.0.0.1:/tmp/d", "back")).toMatchObject({ code: 0 });
    expect(readFileSync(join(folder, "back/e/f"))).toEqual(readFileSync(join(folder, "d/e/f")));

    const batch =
      "put d/e/f g\nchmod 600 g\nrename g h\nget h h\nls -l\nmkdir q\nrmdir q\nput key k\nrm k\n-get gone\n";
    const sftp = await ends("sftp", ["-b", "-", ...options(), "-P", String(door.port), "root@127.0.0.1"], batch);
    expect(sftp).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(/^-rw------- 1 root root +300000 .* h$/m),
      stderr: expect.stringContaining(`gone" not found`),
    });
    expect(readFileSync(join(folder, "h"))).toEqual(readFileSync(join(folder, "d/e/f")));

    expect(await scp("d/e/f", "root@127.0.0.1:too-much")).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('too-much": Failure'),
    });
    expect(await ssh("rm h too-much; ls; rm -r /tmp/d")).toMatchObject({ stdout: "CLAWCLOUD.md\n", code: 0 });
  },
);

test.skipIf(missing.length > 0)(
  "a person at a terminal reads that the machine is simulated, types, mistypes and leaves",
  async () => {
    const command = `ssh -tt ${login().join(" ")}`;
    const terminal = spawn("script", ["-qec", command, "/dev/null"], {
      cwd: folder,
      stdio: ["pipe", "pipe", "inherit"],
    });
    let shown = "";
    terminal.stdout.on("data", (data: Buffer) => {
      shown += data.toString();
    });
    const ended = new Promise<number | null>((resolve) => terminal.once("close", resolve));
    const until = async (what: string) => {
      while (!shown.includes(what) && terminal.exitCode === null)
        await new Promise((resolve) => setTimeout(resolve, 20));
      expect(shown).toContain(what);
    };
    await until("root@clawcloud-local-7:~# ");
    expect(shown).toContain("This machine is SIMULATED");
    expect(shown).toContain("cat CLAWCLOUD.md");
    terminal.stdin.write("cat CLAWCLOX\u007fUD.md\r");
    await until("# Your machine\r\n");
    terminal.stdin.write("garbage\u0003cd /tmp\r");
    await until("root@clawcloud-local-7:/tmp# ");
    terminal.stdin.write("exit 4\r");
    expect(await ended).toBe(4);
  },
);

test("what is on a machine's disk is there when its door is opened again", async () => {
  const first = await openDoor("127.0.0.1", 0, HARDWARE, {
    hostKey: null,
    authorizedKeys: [],
    addendum: "",
    files: [textFile("/srv/site/index.html", "hello", 0o640)],
  });
  const saved: unknown = JSON.parse(JSON.stringify(first.save()));
  await first.close();
  const second = await openDoor("127.0.0.1", 0, HARDWARE, saved as ReturnType<Door["save"]>);
  expect(second.save()).toEqual(saved);
  await second.close();
});

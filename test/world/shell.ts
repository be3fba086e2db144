// The shell of a simulated machine: the few commands that somebody tries first, on its disk. No processes, no globs.
import { posix } from "node:path";
import { type Disk, type DiskEntry, DiskError } from "./disk.ts";

export type Hardware = { name: string; vcpu: number; memoryMb: number; gpu: string | null };
export type Result = { out: string; err: string; code: number };
export type Shell = ReturnType<typeof makeShell>;

type Context = { words: string[]; input: string };
type Redirect = { fd: 1 | 2; into: string; append: boolean };
type Command = { words: string[]; redirects: Redirect[]; joint: string };

const HOME = "/root";
/** What a `$` is called while it must not be expanded. */
const LITERAL_DOLLAR = "\u0000";
const TOKEN =
  /\s+|#.*|&&|\|\||[;|\n]|([12]?)>(>?)\s*(&1)?|((?:"(?:\\.|[^"\\])*"|'[^']*'|\\.|[^\s;|&<>"'\\#]|(?<=\S)#)+)/y;

const done = (out = ""): Result => ({ out, err: "", code: 0 });
const failed = (err: string, code = 1): Result => ({ out: "", err: `${err}\n`, code });

/** One login: it remembers its folder and the last exit code. */
export function makeShell(disk: Disk, hardware: Hardware, bootedAt: number) {
  let folder = HOME;
  let lastCode = 0;
  const resolve = (path: string) => posix.resolve(folder, path.replace(/^~(?=\/|$)/, HOME));

  /** Does something for each operand, and tells of those that it can't be done for. */
  const each = (name: string, paths: readonly string[], act: (path: string) => unknown): Result => {
    if (paths.length === 0) return failed(`${name}: missing operand`);
    const result = done();
    for (const path of paths) {
      try {
        const out = act(path);
        if (typeof out === "string") result.out += out;
      } catch (error) {
        if (!(error instanceof DiskError)) throw error;
        result.err += `${name}: ${path}: ${error.message}\n`;
        result.code = 1;
      }
    }
    return result;
  };

  const commands: Record<string, (context: Context) => Result> = {
    ls: ({ words }) => {
      const { flags, paths } = optionsOf(words);
      const targets = paths.length === 0 ? ["."] : paths;
      return each("ls", targets, (path) => {
        const at = resolve(path);
        const show = (name: string, entry: DiskEntry) => (flags.has("l") ? `${longName(name, entry)}\n` : `${name}\n`);
        if (disk.get(at).data !== null) return show(path, disk.get(at));
        const names = disk.list(at).filter((name) => flags.has("a") || !name.startsWith("."));
        const title = targets.length > 1 ? `${path}:\n` : "";
        return title + names.map((name) => show(name, disk.get(posix.join(at, name)))).join("");
      });
    },
    cat: ({ words, input }) =>
      words.length === 0 ? done(input) : each("cat", words, (path) => disk.read(resolve(path)).toString()),
    echo: ({ words }) => (words[0] === "-n" ? done(words.slice(1).join(" ")) : done(`${words.join(" ")}\n`)),
    pwd: () => done(`${folder}\n`),
    cd: ({ words: [path = HOME] }) =>
      each("cd", [path], () => {
        const to = resolve(path);
        disk.list(to);
        folder = to;
      }),
    mkdir: ({ words }) => {
      const { flags, paths } = optionsOf(words);
      const make = flags.has("p") ? disk.makeFolders : disk.makeFolder;
      return each("mkdir", paths, (path) => make(resolve(path)));
    },
    touch: ({ words }) => each("touch", words, (path) => disk.touch(resolve(path))),
    rm: ({ words }) => {
      const { flags, paths } = optionsOf(words);
      const present = flags.has("f") ? paths.filter((path) => disk.has(resolve(path))) : paths;
      if (flags.has("f") && present.length === 0) return done();
      const remove = flags.has("r") || flags.has("R") ? disk.removeAll : disk.removeFile;
      return each("rm", present, (path) => remove(resolve(path)));
    },
    df: ({ words }) => done(diskTable(disk, optionsOf(words).flags.has("h"))),
    free: ({ words }) => done(memoryTable(hardware.memoryMb, optionsOf(words).flags)),
    uptime: () => done(uptimeLine(bootedAt)),
    uname: ({ words }) =>
      done(
        words.length === 0 ? "Linux\n" : `Linux ${hardware.name} 6.8.0-45-generic #45-Ubuntu SMP x86_64 GNU/Linux\n`,
      ),
    whoami: () => done("root\n"),
    id: () => done("uid=0(root) gid=0(root) groups=0(root)\n"),
    hostname: () => done(`${hardware.name}\n`),
    nproc: () => done(`${hardware.vcpu}\n`),
    date: () => done(`${new Date().toUTCString()}\n`),
    true: () => done(),
    false: () => ({ ...done(), code: 1 }),
    help: () => done(`This machine is simulated. It knows: ${Object.keys(commands).join(" ")} exit\n`),
    ...(hardware.gpu === null
      ? {}
      : {
          "nvidia-smi": () =>
            done(`| NVIDIA-SMI 550.90  Driver Version: 550.90  CUDA Version: 12.4 |\n| 0  ${hardware.gpu} |\n`),
        }),
  };

  const expand = (word: string): string => {
    const variables: Record<string, string> = { HOME, USER: "root", PWD: folder, HOSTNAME: hardware.name };
    const value = (name: string) => (name === "?" ? String(lastCode) : (variables[name] ?? ""));
    return word
      .replace(/\$(?:(\?|\w+)|\{(\w+)\})/g, (_, plain?: string, braced?: string) => value(plain ?? braced ?? ""))
      .replaceAll(LITERAL_DOLLAR, "$");
  };

  function runOne({ words, redirects }: Command, input: string): Result {
    const [name = "", ...rest] = words.map(expand);
    const command = Object.hasOwn(commands, name) ? commands[name] : undefined;
    const result = command?.({ words: rest, input }) ?? failed(`bash: ${name}: command not found`, 127);
    for (const { fd, into, append } of redirects) {
      const text = fd === 1 ? result.out : result.err;
      result[fd === 1 ? "out" : "err"] = "";
      const path = resolve(expand(into));
      if (into === "&1") result.out += text;
      else if (path !== "/dev/null") {
        const written = each("bash", [into], () => disk.write(path, Buffer.from(text), append));
        if (written.code !== 0) return { ...result, err: result.err + written.err, code: 1 };
      }
    }
    return result;
  }

  return {
    prompt: () => `root@${hardware.name}:${folder.replace(/^\/root(?=\/|$)/, "~")}# `,
    lastCode: () => lastCode,
    /** Runs a line. `exit` is the code of an `exit` in it, which ends the login. */
    run: (line: string, input = ""): Result & { exit: number | null } => {
      const parsed = parseLine(line);
      if (typeof parsed === "string") return { ...failed(`bash: ${parsed}`, 2), exit: null };
      const total = { ...done(), exit: null as number | null };
      let piped = input;
      for (const [index, command] of parsed.entries()) {
        const { joint } = command;
        if ((joint === "&&" && lastCode !== 0) || (joint === "||" && lastCode === 0)) continue;
        if (command.words[0] === "exit") {
          lastCode = Number(command.words[1] ?? lastCode) & 255;
          return { ...total, code: lastCode, exit: lastCode };
        }
        const result = runOne(command, piped);
        lastCode = result.code;
        const feedsNext = parsed[index + 1]?.joint === "|";
        piped = feedsNext ? result.out : input;
        if (!feedsNext) total.out += result.out;
        total.err += result.err;
      }
      return { ...total, code: lastCode };
    },
  };
}

/** Whether the line's first command takes what comes on standard input. */
export const readsInput = (line: string): boolean => /^\s*cat\s*(?:$|[;|&>])/.test(line);

/** The commands of a line, or what the shell can't make of it. */
function parseLine(line: string): Command[] | string {
  const commands: Command[] = [];
  let current: Command = { words: [], redirects: [], joint: ";" };
  let target: Omit<Redirect, "into"> | undefined;
  const finish = (joint: string) => {
    if (current.words.length > 0 || current.redirects.length > 0) commands.push(current);
    current = { words: [], redirects: [], joint };
  };
  TOKEN.lastIndex = 0;
  while (TOKEN.lastIndex < line.length) {
    const at = TOKEN.lastIndex;
    const [token = "", fd, doubled, toOut, word] = TOKEN.exec(line) ?? [];
    if (token === "") return notUnderstood(line.slice(at, at + 40));
    if (word !== undefined) {
      if (/`|\$\(/.test(word.replaceAll(/'[^']*'|\\./g, ""))) return notUnderstood(word);
      if (target === undefined) current.words.push(unquote(word));
      else current.redirects.push({ ...target, into: unquote(word) });
      target = undefined;
    } else if (fd !== undefined) {
      const redirect = { fd: fd === "2" ? (2 as const) : (1 as const), append: doubled !== "" };
      if (toOut === undefined) target = redirect;
      else current.redirects.push({ ...redirect, into: "&1" });
    } else if (!/^[\s#]/.test(token) || token === "\n") finish(token === "\n" ? ";" : token);
  }
  if (target !== undefined) return "syntax error: a redirection without a file";
  finish(";");
  return commands;
}

const notUnderstood = (text: string) => `the simulated shell does not understand: ${text}`;

const unquote = (word: string): string =>
  word.replace(/"((?:\\.|[^"\\])*)"|'([^']*)'|\\(.)/g, (_, double?: string, single?: string, escaped?: string) => {
    const literal = (text: string) => text.replaceAll("$", LITERAL_DOLLAR);
    if (double !== undefined) return double.replace(/\\(["\\$`])/g, (_all, char: string) => literal(char));
    return literal(single ?? escaped ?? "");
  });

function optionsOf(words: readonly string[]): { flags: Set<string>; paths: string[] } {
  const isFlag = (word: string) => /^-\w+$/.test(word);
  return { flags: new Set(words.filter(isFlag).join("")), paths: words.filter((word) => !isFlag(word)) };
}

/** A line of `ls -l`. */
export function longName(name: string, { data, mode, modifiedAt }: DiskEntry): string {
  const bits = Array.from("rwxrwxrwx", (letter, index) => ((mode >> (8 - index)) & 1 ? letter : "-")).join("");
  const [, day = "", month = "", , time = ""] = new Date(modifiedAt).toUTCString().split(" ");
  const size = String(data?.length ?? 4_096).padStart(8);
  return `${data === null ? "d" : "-"}${bits} 1 root root ${size} ${month} ${day} ${time.slice(0, 5)} ${name}`;
}

const row = (first: string, widths: readonly number[], cells: readonly (string | number)[]) =>
  `${first}${cells.map((cell, index) => String(cell).padStart(widths[index] ?? 12)).join("")}\n`;

function diskTable(disk: Disk, human: boolean): string {
  const size = (bytes: number) => (human ? `${(bytes / 1_024 ** 2).toFixed(1)}M` : String(Math.ceil(bytes / 1_024)));
  const used = disk.used();
  const share = `${Math.ceil((100 * used) / disk.capacity)}%`;
  const widths = [9, 9, 9, 5];
  return (
    row("Filesystem ", widths, [human ? "Size" : "1K-blocks", "Used", "Avail", "Use%"]).replace("\n", " Mounted on\n") +
    row("simulated  ", widths, [size(disk.capacity), size(used), size(disk.capacity - used), share]).replace(
      "\n",
      " /\n",
    )
  );
}

function memoryTable(memoryMb: number, flags: ReadonlySet<string>): string {
  const size = (mb: number) =>
    flags.has("h") ? `${(mb / 1_024).toFixed(1)}Gi` : String(Math.round(flags.has("m") ? mb : mb * 1_024));
  const shares = [1, 0.2, 0.7, 0.001, 0.1, 0.75].map((share) => size(share * memoryMb));
  const widths = [16, 12, 12, 12, 12, 13];
  return (
    row("    ", widths, ["total", "used", "free", "shared", "buff/cache", "available"]) +
    row("Mem:", widths, shares) +
    row("Swap", widths, [size(0), size(0), size(0)]).replace("Swap ", "Swap:")
  );
}

function uptimeLine(bootedAt: number): string {
  const minutes = Math.floor((Date.now() - bootedAt) / 60_000);
  const hours = `${Math.floor(minutes / 60) % 24}:${String(minutes % 60).padStart(2, "0")}`;
  const days = minutes >= 1_440 ? `${Math.floor(minutes / 1_440)} days, ` : "";
  return ` ${new Date().toISOString().slice(11, 19)} up ${days}${hours},  1 user,  load average: 0.00, 0.01, 0.00\n`;
}

// The file system of a simulated machine: a map from absolute paths to files and folders, in memory and limited.
import { posix } from "node:path";

const MAX_BYTES = 4 * 1_024 ** 2;
const MAX_ENTRIES = 1_000;
const FOLDER_MODE = 0o755;
const FILE_MODE = 0o644;
const START_FOLDERS = ["/", "/root", "/root/.ssh", "/home", "/tmp", "/etc", "/var", "/var/log"];

/** A file as user data brings it, or as a kept world stores it. A folder has no content. */
export type DiskFile = { path: string; base64: string | null; mode?: number; modifiedAt?: number };
export type DiskEntry = { data: Buffer | null; mode: number; modifiedAt: number };
export type Disk = ReturnType<typeof makeDisk>;

const REASONS = {
  ENOENT: "No such file or directory",
  EEXIST: "File exists",
  ENOTDIR: "Not a directory",
  EISDIR: "Is a directory",
  ENOTEMPTY: "Directory not empty",
  EBUSY: "Device or resource busy",
  ENOSPC: "No space left on device",
} as const;

export class DiskError extends Error {
  readonly code: keyof typeof REASONS;
  constructor(code: keyof typeof REASONS) {
    super(REASONS[code]);
    this.code = code;
  }
}

export const textFile = (path: string, text: string, mode = FILE_MODE): DiskFile => ({
  path,
  base64: Buffer.from(text).toString("base64"),
  mode,
});

/** Files as cloud-init's `write_files` lists them. */
export type WrittenFile = { path: string; content?: string; encoding?: string; permissions?: string };
export const writtenFiles = (files: readonly WrittenFile[] = []): DiskFile[] =>
  files.map(({ path, content = "", encoding = "", permissions = "0644" }) => ({
    path,
    base64: /^b(?:ase)?64$/.test(encoding) ? content : Buffer.from(content).toString("base64"),
    mode: Number.parseInt(permissions, 8),
  }));

/** A disk with the usual folders and these files. Every path that it takes is absolute and normal. */
export function makeDisk(files: readonly DiskFile[] = []) {
  const entries = new Map<string, DiskEntry>();
  let used = 0;

  const folderAt = (path: string): void => {
    const entry = entries.get(path);
    if (entry === undefined) throw new DiskError("ENOENT");
    if (entry.data !== null) throw new DiskError("ENOTDIR");
  };
  const get = (path: string): DiskEntry => {
    const entry = entries.get(path);
    if (entry !== undefined) return entry;
    if (path !== "/") folderAt(posix.dirname(path));
    throw new DiskError("ENOENT");
  };
  const file = (path: string) => {
    const { data } = get(path);
    if (data === null) throw new DiskError("EISDIR");
    return data;
  };
  const add = (path: string, data: Buffer | null, mode: number): DiskEntry => {
    folderAt(posix.dirname(path));
    if (entries.size >= MAX_ENTRIES) throw new DiskError("ENOSPC");
    const entry = { data, mode, modifiedAt: Date.now() };
    entries.set(path, entry);
    return entry;
  };
  const resize = (entry: DiskEntry, bytes: number): Buffer => {
    const before = entry.data ?? Buffer.alloc(0);
    if (used + bytes - before.length > MAX_BYTES) throw new DiskError("ENOSPC");
    used += bytes - before.length;
    const data = Buffer.alloc(bytes);
    before.copy(data);
    entry.data = data;
    entry.modifiedAt = Date.now();
    return data;
  };
  const namesIn = (path: string): string[] => {
    const prefix = path === "/" ? path : `${path}/`;
    const inside = [...entries.keys()].filter((one) => one !== "/" && one.startsWith(prefix));
    return inside.map((one) => one.slice(prefix.length)).filter((name) => !name.includes("/"));
  };
  const makeFolders = (path: string): void => {
    if (entries.has(path)) {
      folderAt(path);
      return;
    }
    if (path !== "/") makeFolders(posix.dirname(path));
    entries.set(path, { data: null, mode: FOLDER_MODE, modifiedAt: Date.now() });
  };

  const disk = {
    capacity: MAX_BYTES,
    used: () => used,
    has: (path: string) => entries.has(path),
    get,
    read: file,
    /** Names in a folder, sorted. */
    list: (path: string): string[] => {
      get(path);
      folderAt(path);
      return namesIn(path).sort();
    },
    makeFolder: (path: string): void => {
      if (entries.has(path)) throw new DiskError("EEXIST");
      add(path, null, FOLDER_MODE);
    },
    makeFolders,
    /** Creates the file where there is none; leaves what is in it. */
    touch: (path: string, mode = FILE_MODE): void => {
      const entry = entries.get(path) ?? add(path, Buffer.alloc(0), mode & 0o777);
      entry.modifiedAt = Date.now();
    },
    setMode: (path: string, mode: number): void => {
      get(path).mode = mode & 0o777;
    },
    truncate: (path: string, bytes: number): void => {
      file(path);
      resize(get(path), bytes);
    },
    /** Writes into a file that exists, from an offset on. */
    writeAt: (path: string, offset: number, data: Buffer): void => {
      const before = file(path);
      const entry = get(path);
      const grown = offset + data.length > before.length ? resize(entry, offset + data.length) : before;
      data.copy(grown, offset);
      entry.modifiedAt = Date.now();
    },
    /** Makes or replaces a file, or appends to it. */
    write: (path: string, data: Buffer, append = false): void => {
      disk.touch(path);
      if (!append) disk.truncate(path, 0);
      disk.writeAt(path, file(path).length, data);
    },
    removeFile: (path: string): void => {
      used -= file(path).length;
      entries.delete(path);
    },
    removeFolder: (path: string): void => {
      get(path);
      folderAt(path);
      if (path === "/") throw new DiskError("EBUSY");
      if (namesIn(path).length > 0) throw new DiskError("ENOTEMPTY");
      entries.delete(path);
    },
    /** A file, or a folder with all that is in it. */
    removeAll: (path: string): void => {
      if (get(path).data !== null) {
        disk.removeFile(path);
        return;
      }
      for (const name of namesIn(path)) disk.removeAll(posix.join(path, name));
      disk.removeFolder(path);
    },
    rename: (from: string, to: string): void => {
      const entry = get(from);
      folderAt(posix.dirname(to));
      if (entries.has(to)) throw new DiskError("EEXIST");
      if (`${to}/`.startsWith(`${from}/`)) throw new DiskError("EBUSY");
      entries.delete(from);
      entries.set(to, entry);
      for (const [path, inside] of [...entries]) {
        if (!path.startsWith(`${from}/`)) continue;
        entries.delete(path);
        entries.set(to + path.slice(from.length), inside);
      }
    },
    /** Everything on it, as `makeDisk` takes it. */
    save: (): DiskFile[] =>
      [...entries].map(([path, { data, mode, modifiedAt }]) => ({
        path,
        base64: data?.toString("base64") ?? null,
        mode,
        modifiedAt,
      })),
  };

  for (const path of START_FOLDERS) makeFolders(path);
  for (const { path, base64, mode, modifiedAt } of files) {
    makeFolders(base64 === null ? path : posix.dirname(path));
    if (base64 !== null) disk.write(path, Buffer.from(base64, "base64"));
    const entry = get(path);
    entry.mode = mode ?? entry.mode;
    entry.modifiedAt = modifiedAt ?? entry.modifiedAt;
  }
  return disk;
}

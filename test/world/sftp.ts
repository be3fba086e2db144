// The SFTP server of a simulated machine, on its disk: what `sftp`, and `scp` since OpenSSH 9, talk to.
import { posix } from "node:path";
import ssh2 from "ssh2";
import { type Disk, type DiskEntry, DiskError } from "./disk.ts";
import { longName } from "./shell.ts";

const { OPEN_MODE, STATUS_CODE } = ssh2.utils.sftp;
/** By POSIX: what kind of a file the mode's upper bits say it is. */
const FOLDER_KIND = 0o040000;
const FILE_KIND = 0o100000;
const MAX_HANDLES = 100;
const MAX_READ_BYTES = 65_536;

type Handle = { path: string; append: boolean; names: string[] | undefined };

export function serveSftp(sftp: ssh2.SFTPWrapper, disk: Disk): void {
  const handles = new Map<number, Handle>();
  let lastHandle = 0;
  const resolve = (path: string) => posix.resolve("/root", path);
  const open = (handle: Handle): Buffer => {
    if (handles.size >= MAX_HANDLES) throw new DiskError("ENOSPC");
    lastHandle += 1;
    handles.set(lastHandle, handle);
    const name = Buffer.alloc(4);
    name.writeUInt32BE(lastHandle);
    return name;
  };
  const handleOf = (name: Buffer): Handle => {
    const handle = name.length === 4 ? handles.get(name.readUInt32BE()) : undefined;
    if (handle === undefined) throw new DiskError("ENOENT");
    return handle;
  };
  /** Runs what answers a request; what the disk refuses is the answer. */
  const answer = (id: number, act: () => void): void => {
    try {
      act();
    } catch (error) {
      if (!(error instanceof DiskError)) throw error;
      const code = error.code === "ENOENT" ? STATUS_CODE.NO_SUCH_FILE : STATUS_CODE.FAILURE;
      sftp.status(id, code, error.message);
    }
  };
  /** For a request that wants no more than OK. */
  const obey = (id: number, act: () => void): void =>
    answer(id, () => {
      act();
      sftp.status(id, STATUS_CODE.OK);
    });
  const change = (path: string, { mode, size }: Partial<ssh2.Attributes>) => {
    if (mode !== undefined) disk.setMode(path, mode);
    if (size !== undefined) disk.truncate(path, size);
  };

  sftp.on("end", () => end(sftp, 0));
  sftp.on("error", () => end(sftp, 1));
  sftp.on("OPEN", (id, name, flags, { mode }) =>
    answer(id, () => {
      const path = resolve(name);
      if (disk.has(path) && (flags & OPEN_MODE.EXCL) !== 0) throw new DiskError("EEXIST");
      if (disk.has(path) || (flags & OPEN_MODE.CREAT) === 0) disk.read(path);
      else disk.touch(path, mode);
      if ((flags & OPEN_MODE.TRUNC) !== 0) disk.truncate(path, 0);
      sftp.handle(id, open({ path, append: (flags & OPEN_MODE.APPEND) !== 0, names: undefined }));
    }),
  );
  sftp.on("READ", (id, handle, offset, length) =>
    answer(id, () => {
      const data = disk.read(handleOf(handle).path).subarray(offset, offset + Math.min(length, MAX_READ_BYTES));
      if (data.length === 0) sftp.status(id, STATUS_CODE.EOF);
      else sftp.data(id, data);
    }),
  );
  sftp.on("WRITE", (id, handle, offset, data) =>
    obey(id, () => {
      const { path, append } = handleOf(handle);
      disk.writeAt(path, append ? disk.read(path).length : offset, data);
    }),
  );
  sftp.on("CLOSE", (id, handle) =>
    obey(id, () => {
      handleOf(handle);
      handles.delete(handle.readUInt32BE());
    }),
  );
  sftp.on("OPENDIR", (id, name) =>
    answer(id, () => {
      const path = resolve(name);
      sftp.handle(id, open({ path, append: false, names: disk.list(path) }));
    }),
  );
  sftp.on("READDIR", (id, handle) =>
    answer(id, () => {
      const opened = handleOf(handle);
      const entries = (opened.names ?? [])
        .map((name) => ({ name, path: posix.join(opened.path, name) }))
        .filter(({ path }) => disk.has(path))
        .map(({ name, path }) => ({ name, entry: disk.get(path) }));
      opened.names = undefined;
      const told = entries.map(({ name, entry }) => ({
        filename: name,
        longname: longName(name, entry),
        attrs: attributesOf(entry),
      }));
      if (told.length === 0) sftp.status(id, STATUS_CODE.EOF);
      else sftp.name(id, told);
    }),
  );
  sftp.on("REALPATH", (id, name) =>
    answer(id, () => {
      const filename = resolve(name);
      const attrs = disk.has(filename) ? attributesOf(disk.get(filename)) : NO_ATTRIBUTES;
      sftp.name(id, [{ filename, longname: filename, attrs }]);
    }),
  );
  const stat = (id: number, name: string) => answer(id, () => sftp.attrs(id, attributesOf(disk.get(resolve(name)))));
  sftp.on("STAT", stat);
  sftp.on("LSTAT", stat);
  sftp.on("FSTAT", (id, handle) => answer(id, () => sftp.attrs(id, attributesOf(disk.get(handleOf(handle).path)))));
  sftp.on("SETSTAT", (id, name, attrs) => obey(id, () => change(resolve(name), attrs)));
  sftp.on("FSETSTAT", (id, handle, attrs) => obey(id, () => change(handleOf(handle).path, attrs)));
  sftp.on("REMOVE", (id, name) => obey(id, () => disk.removeFile(resolve(name))));
  sftp.on("MKDIR", (id, name) => obey(id, () => disk.makeFolder(resolve(name))));
  sftp.on("RMDIR", (id, name) => obey(id, () => disk.removeFolder(resolve(name))));
  sftp.on("RENAME", (id, from, to) => obey(id, () => disk.rename(resolve(from), resolve(to))));
  sftp.on("READLINK", (id) => sftp.status(id, STATUS_CODE.OP_UNSUPPORTED));
  sftp.on("SYMLINK", (id) => sftp.status(id, STATUS_CODE.OP_UNSUPPORTED));
}

/** Ends with an exit code, without which scp fails; ssh2 has no public call that sends one on this kind of channel. */
function end(sftp: ssh2.SFTPWrapper, code: number): void {
  const { _protocol, outgoing } = sftp as unknown as {
    _protocol: { exitStatus: (channel: number, code: number) => void };
    outgoing: { id: number; state: string };
  };
  if (outgoing.state === "open") _protocol.exitStatus(outgoing.id, code);
  sftp.end();
}

const NO_ATTRIBUTES = { mode: 0, uid: 0, gid: 0, size: 0, atime: 0, mtime: 0 };

function attributesOf({ data, mode, modifiedAt }: DiskEntry): ssh2.Attributes {
  const seconds = Math.floor(modifiedAt / 1_000);
  const kind = data === null ? FOLDER_KIND : FILE_KIND;
  return { mode: kind | mode, uid: 0, gid: 0, size: data?.length ?? 4_096, atime: seconds, mtime: seconds };
}

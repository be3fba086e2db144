// Stands in for `cloudflare:sockets`: connections to the SSH banners of the run that is under way.
type Line = { banner: Promise<string | null>; close: () => Promise<void> };
type Dial = (host: string, port: number) => Line;

let dial: Dial = () => ({ banner: Promise.resolve(null), close: async () => undefined });

export const dialWith = (next: Dial): void => {
  dial = next;
};

export function connect({ hostname, port }: { hostname: string; port: number }) {
  const { banner: first, close } = dial(hostname, port);
  let banner = first;
  const read = async () => {
    const line = await banner;
    banner = Promise.resolve(null);
    return line === null
      ? { done: true, value: undefined }
      : { done: false, value: new TextEncoder().encode(`${line}\r\n`) };
  };
  return {
    opened: Promise.resolve(),
    closed: Promise.resolve(),
    readable: { getReader: () => ({ read }) },
    close,
  };
}

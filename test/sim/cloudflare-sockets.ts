// Stands in for `cloudflare:sockets`: connections to the SSH banners of the run that is under way.
type Dial = (host: string, port: number) => Promise<string | null>;

let dial: Dial = async () => null;

export const dialWith = (next: Dial): void => {
  dial = next;
};

export function connect({ hostname, port }: { hostname: string; port: number }) {
  let banner: Promise<string | null> | null = dial(hostname, port);
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
    close: async () => undefined,
  };
}

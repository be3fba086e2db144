// Whether an image's tag is at its registry, as the registries' API has it (OCI Distribution Specification 1.1): the manifest
// is asked for by HEAD, which counts towards no limit of pulls.

const ACCEPT = [
  "application/vnd.oci.image.index.v1+json",
  "application/vnd.docker.distribution.manifest.list.v2+json",
  "application/vnd.oci.image.manifest.v1+json",
  "application/vnd.docker.distribution.manifest.v2+json",
].join(", ");

type Image = { origin: string; repository: string; reference: string };

/** As Docker reads a name: without a host Docker Hub's, and there without a user the library's. */
function parseImage(image: string): Image {
  const [, name = image, , reference = "latest"] = /^(.+?)(@|:(?=[^/]*$))([^@]+)?$/.exec(image) ?? [];
  const [first = "", ...rest] = name.split("/");
  const isHost = rest.length > 0 && /[.:]|^localhost$/.test(first);
  if (!isHost) {
    const repository = rest.length === 0 ? `library/${first}` : name;
    return { origin: "https://registry-1.docker.io", repository, reference };
  }
  if (first === "docker.io") return { ...parseImage(rest.join("/")), reference };
  // Docker, too, asks a registry on this machine without TLS.
  const scheme = /^(localhost|127\.)/.test(first) ? "http" : "https";
  return { origin: `${scheme}://${first}`, repository: rest.join("/"), reference };
}

export type TagAnswer = { state: "there" } | { state: "absent" | "private" | "unclear"; status: number };

/** Rejects where nobody answers in time. */
export async function askForTag(image: string, timeoutMs: number): Promise<TagAnswer> {
  const { origin, repository, reference } = parseImage(image);
  const signal = AbortSignal.timeout(timeoutMs);
  const url = `${origin}/v2/${repository}/manifests/${reference}`;
  const ask = (token?: string) =>
    fetch(url, {
      method: "HEAD",
      headers: { accept: ACCEPT, ...(token === undefined ? {} : { authorization: `Bearer ${token}` }) },
      signal,
    });
  let answer = await ask();
  if (answer.status === 401) {
    const token = await anonymousToken(answer.headers.get("www-authenticate") ?? "", signal);
    if (token !== null) answer = await ask(token);
  }
  const { status } = answer;
  if (answer.ok) return { state: "there" };
  // Docker Hub does not tell what is not there from what is not for everybody.
  if (status === 401 || status === 403) return { state: "private", status };
  return { state: status === 404 ? "absent" : "unclear", status };
}

async function anonymousToken(challenge: string, signal: AbortSignal): Promise<string | null> {
  const fields = new Map([...challenge.matchAll(/(\w+)="([^"]*)"/g)].map(([, name = "", value = ""]) => [name, value]));
  const realm = fields.get("realm");
  if (realm === undefined || !URL.canParse(realm)) return null;
  const url = new URL(realm);
  for (const name of ["service", "scope"]) {
    const value = fields.get(name);
    if (value !== undefined) url.searchParams.set(name, value);
  }
  const answer = await fetch(url, { signal });
  if (!answer.ok) return null;
  const { token, access_token: other } = (await answer.json()) as { token?: unknown; access_token?: unknown };
  return [token, other].find((one) => typeof one === "string") ?? null;
}

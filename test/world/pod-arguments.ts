// What RunPod makes of a pod's start arguments, as its users have found out (hard case 53).

export const WENT_WRONG = "Something went wrong. Please try again later or contact support.";

/** Quotes with a `$` in them are not taken. */
export const isRefused = (args: string): boolean => /["'][^"']*\$/.test(args);

/** The container's command: JSON {cmd}, or else the words that Python's shlex splits into. */
export function commandOf(args: string): string[] {
  try {
    const { cmd } = JSON.parse(args) as { cmd?: unknown };
    if (Array.isArray(cmd)) return cmd.map(String);
  } catch {
    // No JSON: a line of words.
  }
  return [...args.matchAll(/(?:'([^']*)'|"((?:\\.|[^"\\])*)"|\\(.)|([^\s'"\\]))+/g)].map(([word]) => unquote(word));
}

const unquote = (word: string): string =>
  word.replace(
    /'([^']*)'|"((?:\\.|[^"\\])*)"|\\(.)/g,
    (_, single?: string, double?: string, escaped?: string) =>
      single ?? double?.replace(/\\([\\"])/g, "$1") ?? escaped ?? "",
  );

/** The script that a command gives to bash, in clear or as base64 that bash decodes; undefined where it gives none. */
export function scriptOf(args: string): string | undefined {
  const [shell, option, script = ""] = commandOf(args);
  if (shell !== "bash" || option !== "-c") return undefined;
  const encoded = /^\{base64,-d\}<<<([\w+/=]+)\|bash$/.exec(script)?.[1];
  return encoded === undefined ? script : Buffer.from(encoded, "base64").toString();
}

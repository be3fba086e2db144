// Must be loaded before the product: puts stand-ins where the Workers' runtime and the costly cryptography would be, and
// plants bugs where a test of the checker asks for them.
import { enableCompileCache, registerHooks } from "node:module";
import { fileURLToPath } from "node:url";
import { PLANTS, type PlantName } from "./plants.ts";

const here = (file: string): string => new URL(file, import.meta.url).href;
const STAND_INS: readonly [RegExp, string][] = [
  [/^cloudflare:workers$/, here("cloudflare-workers.ts")],
  [/^cloudflare:sockets$/, here("cloudflare-sockets.ts")],
  [/\/credentials\/ssh-keys\.ts$/, here("keys.ts")],
  [/^\.\/ssh-keys\.ts$/, here("keys.ts")],
  [/\/credentials\/ecies\.ts$/, here("seals.ts")],
  [/^\.\/ecies\.ts$/, here("seals.ts")],
  // viem draws names for its clients in advance: how much of a run's chance that takes would depend on the runs before.
  [/\/utils\/uid\.js$/, here("uid.ts")],
  [/^(?:\.\.?\/)+entity\.js$/, here("entity.ts")],
];

/** What the bundler carries as text: nobody reads it here. */
const TEXTS = /\/llms\.txt$|\/swagger-ui-dist\/swagger-ui(?:-bundle)?\.(?:js|css)$/;

/**
 * What viem imports only when it needs it: how long that takes is real time, in which a run may go on otherwise than when the
 * module is there already.
 */
const LAZY = /\/viem\/_esm\/(?:utils\/signature\/recoverPublicKey|actions\/public\/call)\.js$/;
const importAtOnce = (source: string): string => {
  const imports: string[] = [];
  const edited = source.replaceAll(/await import\((['"][^'"]+['"])\)/g, (_, name: string) => {
    imports.push(`import * as lazy${imports.length} from ${name};`);
    return `await lazy${imports.length - 1}`;
  });
  return `${imports.join("\n")}\n${edited}`;
};

/**
 * Whose key made a signature is remembered when it is made: finding it out takes longer than all else that an order takes.
 * Of a signature that was not made here it is found out.
 */
const REMEMBERING: readonly { of: RegExp; from: string; to: string }[] = [
  {
    of: /\/viem\/_esm\/accounts\/utils\/sign\.js$/,
    from: "    return (() => {\n        if (to ===",
    to: `    const made = serializeSignature(signature);
    remember(hash.slice(2) + made.slice(2, 130) + recovery, privateKey.slice(2), secp256k1.getPublicKey);
    return (() => {\n        if (to ===`,
  },
  {
    of: /\/viem\/_esm\/utils\/signature\/recoverPublicKey\.js$/,
    from: `signature_
        .recoverPublicKey(hashHex.substring(2))
        .toHex(false)`,
    to: `signerOf(hashHex.substring(2) + signature_.toCompactHex() + signature_.recovery)
        ?? signature_.recoverPublicKey(hashHex.substring(2)).toHex(false)`,
  },
];

const planted = process.env["SIM_PLANT"] as PlantName | undefined;
const plant = planted === undefined ? undefined : PLANTS[planted];
if (planted !== undefined && plant === undefined) throw new Error(`there is no plant "${planted}"`);

// Beside the packages: `npm ci` takes it away.
enableCompileCache(fileURLToPath(here("../../node_modules/.cache/sim")));

/**
 * Modules of ours and of packages, by their URL: what stands beside one is one as well. Node would read its package's
 * description anew for each file, which takes longer than all else that a process does before its first world.
 */
const modules = new Set<string>();
const BESIDE = /^\.\.?\/.*\.(?:js|ts)$/;

registerHooks({
  resolve(specifier, context, next) {
    const standIn = STAND_INS.find(([pattern]) => pattern.test(specifier));
    if (standIn !== undefined) return { url: standIn[1], shortCircuit: true };
    const { parentURL = "" } = context;
    if (BESIDE.test(specifier) && modules.has(parentURL)) {
      const { href: url } = new URL(specifier, parentURL);
      modules.add(url);
      return { url, format: url.endsWith(".ts") ? "module-typescript" : "module", shortCircuit: true };
    }
    const resolved = next(specifier, context);
    if (resolved.format?.startsWith("module")) modules.add(resolved.url);
    return resolved;
  },
  load(url, context, next) {
    if (TEXTS.test(url)) return { format: "module", source: 'export default "";', shortCircuit: true };
    const loaded = next(url, context);
    const edits = plant?.filter(({ file }) => url.endsWith(`/${file}`)) ?? [];
    const remembering = REMEMBERING.find(({ of }) => of.test(url));
    if (edits.length === 0 && remembering === undefined && !LAZY.test(url)) return loaded;
    let source = String(loaded.source);
    if (LAZY.test(url)) source = importAtOnce(source);
    if (remembering !== undefined) {
      const { from, to } = remembering;
      if (!source.includes(from)) throw new Error(`${url} has another text than is remembered`);
      source = `import { remember, signerOf } from "${here("signers.ts")}";\n${source.replace(from, () => to)}`;
    }
    for (const { file, from, to } of edits) {
      if (!source.includes(from)) throw new Error(`the bug "${planted}" finds no place in ${file} any more`);
      source = source.replace(from, to);
    }
    return { ...loaded, source };
  },
});

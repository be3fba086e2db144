// Vitest sends a module with its source map behind a marker that Vite's module runner does not know in workerd: the places in
// failures were those of the transformed code, and the map was searched for in all of it, for each frame of each stack, which
// took a tenth of a run's CPU time. Here a module's text gives way to its map in the form that the runner reads.
const MARKER = "\n//# vitestSourceMap=";

type Module = { map?: unknown; meta?: { code?: string } };
type Modules = {
  getModuleById: (id: string) => Module | undefined;
  getModuleSourceMapById: (id: string) => unknown;
};

const { evaluatedModules } = Reflect.get(globalThis, "__vitest_worker__") as { evaluatedModules: Modules };
let owner: Modules = evaluatedModules;
while (!Object.hasOwn(owner, "getModuleSourceMapById")) owner = Object.getPrototypeOf(owner) as Modules;
const read = owner.getModuleSourceMapById;
// This file runs before each test file.
if (read.name !== "readFromMarker") {
  owner.getModuleSourceMapById = function readFromMarker(id) {
    const { meta } = this.getModuleById(id) ?? {};
    if (meta?.code) meta.code = toInline(meta.code);
    return read.call(this, id);
  };
}

function toInline(code: string): string {
  const at = code.lastIndexOf(MARKER);
  if (at === -1) return "";
  const map = Buffer.from(code.slice(at + MARKER.length)).toString("base64");
  return `//# sourceMappingURL=data:application/json;base64,${map}\n`;
}

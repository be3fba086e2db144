/**
 * Calls `stop` on each signal that ends this program. Miniflare would end the process at once, with builds that go on and a
 * chain that is not saved: whatever listens later does not stay. It still ends workerd when the process exits.
 */
export function onSignals(stop: () => void): void {
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
    process.on(signal, stop);
    process.on("newListener", (name, listener) => {
      if (name === signal) queueMicrotask(() => process.removeListener(signal, listener));
    });
  }
}

// A port where nothing answers: the system drops what asks for a connection, as a firewall's DROP rule does. A process listens
// there, is stopped, and its queue of connections is full.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { connect, type Socket } from "node:net";

const LISTENER = `const [host, port] = process.argv.slice(1);
require("node:net").createServer().listen({ port: Number(port), host, backlog: 1 }, function () {
  process.stdout.write(String(this.address().port) + "\\n", () => process.kill(process.pid, "SIGSTOP"));
});`;
const CONNECT_MS = 300;

/** Resolves once nothing answers there: at any free port of this machine, or at a place that is given. */
export async function startSilentPort(
  place: { host: string; port: number } = { host: "127.0.0.1", port: 0 },
): Promise<{ port: number; stop: () => Promise<void> }> {
  const { host } = place;
  const listener = ["-e", LISTENER, host, String(place.port)];
  const child = spawn(process.execPath, listener, { stdio: ["ignore", "pipe", "inherit"] });
  const killOnExit = () => child.kill("SIGKILL");
  process.once("exit", killOnExit);
  const ended = once(child, "exit").then(() => {
    throw new Error(`nobody can listen at ${host}:${place.port}`);
  });
  const [line] = (await Promise.race([once(child.stdout, "data"), ended])) as [Buffer];
  ended.catch(() => undefined);
  const port = Number(line.toString());
  const filling: Socket[] = [];
  for (let connected = true; connected; ) {
    const socket = connect(port, host).on("error", () => undefined);
    filling.push(socket);
    connected = await Promise.race([
      once(socket, "connect").then(() => true),
      new Promise<false>((resolve) => setTimeout(() => resolve(false), CONNECT_MS)),
    ]);
  }
  return {
    port,
    stop: async () => {
      for (const socket of filling) socket.destroy();
      process.off("exit", killOnExit);
      const gone = once(child, "exit");
      child.kill("SIGKILL");
      await gone;
    },
  };
}

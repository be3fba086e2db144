// A port where nothing answers: the system drops what asks for a connection, as a firewall's DROP rule does. A process listens
// there, is stopped, and its queue of connections is full.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { connect, type Socket } from "node:net";

const LISTENER = `require("node:net").createServer().listen({ port: 0, host: "127.0.0.1", backlog: 1 }, function () {
  process.stdout.write(String(this.address().port) + "\\n", () => process.kill(process.pid, "SIGSTOP"));
});`;
const CONNECT_MS = 300;

export async function startSilentPort(): Promise<{ port: number; stop: () => Promise<void> }> {
  const child = spawn(process.execPath, ["-e", LISTENER], { stdio: ["ignore", "pipe", "inherit"] });
  const killOnExit = () => child.kill("SIGKILL");
  process.once("exit", killOnExit);
  const [line] = (await once(child.stdout, "data")) as [Buffer];
  const port = Number(line.toString());
  const filling: Socket[] = [];
  for (let connected = true; connected; ) {
    const socket = connect(port, "127.0.0.1").on("error", () => undefined);
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

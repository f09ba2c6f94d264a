// Console and screen of a pod, over the API server's own WebSockets.
import RFB from "/novnc/core/rfb.js";

const ERRORS = 3; // the channel of attach
const socketOf = (path, protocols) => new WebSocket(`ws://${location.host}${path}`, protocols);

// Both put themselves into an element, say what happens by a function, and return what ends them.
// Where the API server gives no session, the one message is a text that says why.

export function serialConsole(path, pod, view, say) {
  const place = document.createElement("div");
  view.append(place);
  const terminal = new Terminal({ scrollback: 5000 });
  terminal.open(place);
  const container = encodeURIComponent(pod.spec.containers[0].name);
  const socket = socketOf(
    `${path}/attach?container=${container}&stdin=true&stdout=true&tty=true`,
    ["v5.channel.k8s.io", "v4.channel.k8s.io"]);
  socket.binaryType = "arraybuffer";
  const encoder = new TextEncoder();
  const typing = terminal.onData((text) => {
    if (socket.readyState !== WebSocket.OPEN) return;
    const keys = encoder.encode(text);
    const message = new Uint8Array(keys.length + 1); // channel 0: stdin
    message.set(keys, 1);
    socket.send(message);
  });
  let refused = "";
  let reason = "";
  socket.onopen = () => {
    say("Attached. All who are attached share the keyboard.");
    terminal.focus();
  };
  socket.onmessage = ({ data }) => {
    if (typeof data === "string") {
      refused = data;
      return;
    }
    const bytes = new Uint8Array(data);
    if (bytes[0] === ERRORS) reason = messageOf(bytes.subarray(1));
    else terminal.write(bytes.subarray(1));
  };
  socket.onclose = () => say(refused ? `No console: ${refused}` : `The console has ended. ${reason}`);
  return () => {
    socket.onclose = null;
    socket.close();
    typing.dispose();
    terminal.dispose();
  };
}

function messageOf(bytes) {
  const text = new TextDecoder().decode(bytes);
  try { return JSON.parse(text).message ?? ""; } catch { return text; }
}

// A forwarded port as the channel that noVNC wants. Messages begin with the number of a channel, 0 for
// data and 1 for errors, and the first of each has the port in it.
class Forwarded {
  constructor(path) {
    this.onopen = this.onmessage = this.onclose = this.onerror = null;
    this.refused = this.problem = "";
    this.greeted = new Set();
    this.socket = socketOf(path, ["v4.channel.k8s.io"]);
    this.socket.binaryType = "arraybuffer";
    this.socket.onopen = (event) => this.onopen?.(event);
    this.socket.onerror = (event) => this.onerror?.(event);
    this.socket.onclose = (event) => this.onclose?.(event);
    this.socket.onmessage = ({ data }) => {
      if (typeof data === "string") {
        this.refused = data;
        return;
      }
      const bytes = new Uint8Array(data);
      if (!this.greeted.has(bytes[0])) this.greeted.add(bytes[0]);
      else if (bytes[0] === 0) this.onmessage?.({ data: data.slice(1) });
      else this.problem += new TextDecoder().decode(bytes.subarray(1));
    };
  }
  get binaryType() { return "arraybuffer"; }
  set binaryType(kind) { /* always */ }
  get protocol() { return ""; }
  get readyState() { return this.socket.readyState; }
  send(data) {
    const bytes = new Uint8Array(data.buffer ?? data, data.byteOffset ?? 0, data.byteLength);
    const message = new Uint8Array(bytes.length + 1);
    message.set(bytes, 1);
    this.socket.send(message);
  }
  close() { this.socket.close(); }
}

export function screen(path, pod, view, say) {
  const place = document.createElement("div");
  place.className = "screen";
  view.append(place);
  const channel = new Forwarded(`${path}/portforward?ports=5900`);
  const viewer = new RFB(place, channel, { shared: true });
  viewer.scaleViewport = true;
  let here = true;
  viewer.addEventListener("connect", () => {
    say("Connected. All viewers share the keyboard.");
    viewer.focus();
  });
  viewer.addEventListener("disconnect", () => {
    if (here) say(channel.refused ? `No screen: ${channel.refused}` : `The screen has ended. ${channel.problem}`);
  });
  return () => {
    here = false;
    viewer.disconnect();
  };
}

// The console's page. Everything that comes from a pod is put into it as text.
import { screen, serialConsole } from "/sessions.js";

const LOOK = 3000; // milliseconds between looks at the pods
const KEPT = 100; // figures of each pod
const MOST_LOG = 1 << 20; // characters of a log that are kept
const byId = (id) => document.getElementById(id);
const { namespace, classes } = await (await fetch("/shown")).json();
const place = namespace ? `namespaces/${namespace}/` : "";
let chosen = null; // the pod that is shown
let leave = () => {}; // ends what is shown of it

const keyOf = ({ metadata }) => `${metadata.namespace}/${metadata.name}`;
const podPath = ({ metadata }) => `/api/v1/namespaces/${metadata.namespace}/pods/${metadata.name}`;
const element = (name, text = "") => {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
};

function messageOf(text) {
  try { return JSON.parse(text).message ?? text; } catch { return text.trim(); }
}

async function ask(path) {
  const answer = await fetch(path);
  const text = await answer.text();
  if (!answer.ok) throw new Error(messageOf(text) || answer.statusText);
  return JSON.parse(text);
}

// The list

function isVm({ spec, status }) {
  const name = spec.runtimeClassName;
  if (name) return classes.includes(name) || /^virtlet(-.*)?$/.test(name);
  return (status.containerStatuses ?? []).some((each) => each.containerID?.startsWith("virtlet://"));
}

function stateOf({ metadata, status }) {
  const waiting = (status.containerStatuses ?? []).find((each) => each.state?.waiting);
  if (metadata.deletionTimestamp) return "Terminating";
  return waiting?.state.waiting.reason ?? status.reason ?? status.phase ?? "Unknown";
}

function row(pod) {
  const line = element("tr");
  const choose = element("button", namespace ? pod.metadata.name : keyOf(pod));
  choose.onclick = () => choosePod(pod);
  const first = element("td");
  first.append(choose);
  const restarts = (pod.status.containerStatuses ?? [])
    .reduce((sum, each) => sum + (each.restartCount ?? 0), 0);
  const state = element("td", stateOf(pod));
  if (!["Running", "Succeeded"].includes(state.textContent)) state.className = "bad";
  const others = [pod.spec.nodeName, pod.status.podIP, pod.status.startTime];
  line.append(first, state, element("td", String(restarts)), ...figuresOf(pod),
    ...others.map((text) => element("td", text ?? "")));
  return line;
}

async function look() {
  try {
    const { items } = await ask(`/api/v1/${place}pods`);
    const vms = items.filter(isVm);
    byId("pods").replaceChildren(...vms.map(row));
    byId("none").hidden = vms.length > 0;
    byId("problem").textContent = "";
  } catch (error) {
    byId("problem").textContent = `The list is old: ${error.message}`;
  }
}

// Figures, as the cluster's metrics server has them; without one there are none

const figures = new Map(); // pod to what it consumed, the newest last
const UNITS = { n: 1e-9, u: 1e-6, m: 1e-3, k: 1e3, M: 1e6, G: 1e9, Ki: 2 ** 10, Mi: 2 ** 20, Gi: 2 ** 30 };

function numberOf(quantity = "0") {
  const [, number, unit] = /^([0-9.]+)(\w*)$/.exec(quantity) ?? [0, 0, ""];
  return Number(number) * (UNITS[unit] ?? 1);
}

async function lookAtFigures() {
  try {
    const { items } = await ask(`/apis/metrics.k8s.io/v1beta1/${place}pods`);
    const seen = new Map(items.map((one) => [keyOf(one), one]));
    for (const key of figures.keys()) if (!seen.has(key)) figures.delete(key);
    for (const [key, { timestamp, containers }] of seen) {
      const kept = figures.get(key) ?? [];
      if (kept.at(-1)?.timestamp === timestamp) continue;
      const sum = (kind) => containers.reduce((all, each) => all + numberOf(each.usage[kind]), 0);
      kept.push({ timestamp, cpu: sum("cpu"), memory: sum("memory") });
      figures.set(key, kept.slice(-KEPT));
    }
    byId("list").classList.remove("bare");
  } catch {
    byId("list").classList.add("bare");
  }
}

function figuresOf(pod) {
  const kept = figures.get(keyOf(pod)) ?? [];
  const last = kept.at(-1);
  return [
    plot(kept.map(({ cpu }) => cpu), last ? `${Math.round(last.cpu * 1000)}m` : ""),
    plot(kept.map(({ memory }) => memory), last ? `${Math.round(last.memory / 2 ** 20)}Mi` : ""),
  ];
}

function plot(values, text) {
  const cell = element("td");
  cell.className = "figures";
  if (values.length > 1) {
    const drawing = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    drawing.setAttribute("viewBox", `0 0 ${values.length - 1} 1`);
    drawing.setAttribute("preserveAspectRatio", "none");
    const line = document.createElementNS(drawing.namespaceURI, "polyline");
    const most = Math.max(...values) || 1;
    line.setAttribute("points", values.map((value, x) => `${x},${1 - value / most}`).join(" "));
    drawing.append(line);
    cell.append(drawing);
  }
  cell.append(text);
  return cell;
}

// One pod

function choosePod(pod) {
  chosen = pod;
  byId("name").textContent = pod.metadata.name;
  byId("pod").hidden = false;
  show("log");
}

const VIEWS = { log, events, console: serialConsole, screen };

function show(name) {
  leave();
  leave = () => {};
  byId("view").replaceChildren();
  for (const button of document.querySelectorAll("nav button")) {
    button.setAttribute("aria-pressed", button.dataset.view === name);
  }
  byId("said").textContent = "";
  if (!name) {
    byId("pod").hidden = true;
    return;
  }
  let here = true;
  const end = VIEWS[name](podPath(chosen), chosen, byId("view"), (text) => {
    if (here) byId("said").textContent = text;
  });
  leave = () => { here = false; end(); };
}

function log(path, pod, view, say) {
  const stopped = new AbortController();
  const shown = element("pre");
  view.append(shown);
  follow(`${path}/log?follow=true&tailLines=2000`, shown, stopped.signal)
    .then(() => say("The log has ended."), (error) => say(`No log: ${error.message}`));
  return () => stopped.abort();
}

async function follow(path, shown, signal) {
  const answer = await fetch(path, { signal });
  if (!answer.ok) throw new Error(messageOf(await answer.text()));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const atEnd = shown.scrollTop + shown.clientHeight >= shown.scrollHeight - 5;
    shown.textContent = (shown.textContent + value).slice(-MOST_LOG);
    if (atEnd) shown.scrollTop = shown.scrollHeight;
  }
}

function events(path, { metadata }, view, say) {
  const table = element("table");
  view.append(table);
  const field = encodeURIComponent(`involvedObject.name=${metadata.name}`);
  ask(`/api/v1/namespaces/${metadata.namespace}/events?fieldSelector=${field}`).then(({ items }) => {
    for (const { lastTimestamp, eventTime, type, reason, message } of items) {
      const line = element("tr");
      line.append(...[lastTimestamp ?? eventTime, type, reason, message]
        .map((text) => element("td", text ?? "")));
      table.append(line);
    }
    if (!items.length) say("No events.");
  }, (error) => say(`No events: ${error.message}`));
  return () => {};
}

// A new one: the manifest follows the form until it is edited itself

let asked = 0; // manifests, so that an old answer does not replace a newer one

async function write() {
  const turn = ++asked;
  const answer = await fetch(`/manifest?${new URLSearchParams(new FormData(byId("fields")))}`);
  if (turn === asked) byId("manifest").value = await answer.text();
}

async function start() {
  byId("start").disabled = true;
  byId("refused").textContent = "";
  try {
    const body = byId("manifest").value;
    const headers = { "Content-Type": "application/yaml" };
    const answer = await fetch("/start", { method: "POST", headers, body });
    if (!answer.ok) throw new Error(messageOf(await answer.text()));
    byId("form").hidden = true;
    await look();
  } catch (error) {
    byId("refused").textContent = error.message;
  } finally {
    byId("start").disabled = false;
  }
}

byId("fields").addEventListener("input", write);
byId("fields").addEventListener("submit", (event) => event.preventDefault());
byId("start").onclick = start;
byId("cancel").onclick = () => { byId("form").hidden = true; };
byId("new").onclick = () => {
  byId("refused").textContent = "";
  byId("form").hidden = false;
  byId("fields").elements.name.focus();
  write();
};
for (const button of document.querySelectorAll("nav button")) {
  button.onclick = () => show(button.dataset.view);
}
byId("where").textContent = namespace ? `namespace ${namespace}` : "all namespaces";
for (;;) {
  await lookAtFigures();
  await look();
  await new Promise((done) => setTimeout(done, LOOK));
}

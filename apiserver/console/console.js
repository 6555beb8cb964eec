// The page: follows the collections, draws the chosen view, streams a pod's log.

import { follow, hasToken, lines, request } from "./api.js";
import { VIEWS, cards } from "./views.js";

const COLLECTIONS = {
  nodes: "/api/v1/nodes", pods: "/api/v1/pods", services: "/api/v1/services", events: "/api/v1/events",
  deployments: "/apis/apps/v1/deployments",
};

const maps = Object.fromEntries(Object.keys(COLLECTIONS).map((name) => [name, new Map()]));
let store = {};
let current = VIEWS[location.hash.slice(2)] ? location.hash.slice(2) : "nodes";
let scheduled = false;

const $ = (id) => document.getElementById(id);
const element = (tag, text, name) => {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  return made;
};

function collections() {
  const byName = (a, b) =>
    `${a.metadata.namespace ?? ""}/${a.metadata.name}`.localeCompare(`${b.metadata.namespace ?? ""}/${b.metadata.name}`);
  const sorted = Object.entries(maps).map(([name, map]) => [name, [...map.values()].sort(byName)]);
  return { ...Object.fromEntries(sorted), store };
}

function draw() {
  scheduled = false;
  const all = collections();
  const view = VIEWS[current];
  const top = element("div", undefined, "cards");
  for (const [label, figure] of cards(all)) {
    const card = element("div", label, "card");
    card.prepend(element("b", figure));
    top.append(card);
  }
  const wanted = $("filter").value.toLowerCase();
  const table = element("table");
  const head = table.createTHead().insertRow();
  for (const column of view.columns) head.append(element("th", column));
  const body = table.createTBody();
  for (const cells of view.rows(all)) {
    const text = cells.map((cell) => cell.text ?? cell).join(" ").toLowerCase();
    if (wanted && !text.includes(wanted)) continue;
    const row = body.insertRow();
    for (const cell of cells) row.append(drawCell(cell, view.words));
  }
  const shown = body.rows.length ? table : element("p", "nothing to show", "empty");
  $("view").replaceChildren(top, element("h2", current), shown);
}

function drawCell(cell, words) {
  if (typeof cell === "string") return element("td", cell);
  if (!cell.action) return element("td", words?.[cell.text] ?? cell.text, cell.class);
  const button = element("button", cell.text);
  button.addEventListener("click", () => showLog(cell.action.log));
  const made = element("td");
  made.append(button);
  return made;
}

function changed() {
  if (!scheduled) {
    scheduled = true;
    requestAnimationFrame(draw);
  }
}

function state(text, good) {
  $("link").textContent = text;
  $("link").className = good ? "good" : "bad";
}

let streaming = new AbortController();

async function showLog(pod, container = pod.spec.containers[0].name) {
  streaming.abort();
  streaming = new AbortController();
  const signal = streaming.signal;
  const { namespace, name } = pod.metadata;
  $("log-title").textContent = `${namespace}/${name}`;
  $("log-container").replaceChildren(...pod.spec.containers.map((entry) => new Option(entry.name, entry.name, false, entry.name === container)));
  $("log-container").onchange = (event) => showLog(pod, event.target.value);
  const out = $("log-text");
  out.textContent = "";
  if (!$("log").open) $("log").showModal();
  try {
    const path = `/api/v1/namespaces/${namespace}/pods/${name}/log?follow=true&tailLines=500&container=${container}`;
    for await (const line of lines(await request(path, { signal }))) {
      out.append(`${line}\n`);
      out.scrollTop = out.scrollHeight;
    }
    if (!out.textContent) out.append("no output\n");
  } catch (error) {
    if (!signal.aborted) out.append(`${error.message}\n`);
  }
}

$("log").addEventListener("close", () => streaming.abort());

for (const name of Object.keys(VIEWS)) {
  const button = element("button", name);
  button.addEventListener("click", () => choose(name));
  $("tabs").append(button);
}

function choose(name) {
  current = name;
  history.replaceState(null, "", `#/${name}`);
  for (const button of $("tabs").children) button.toggleAttribute("aria-current", false);
  const chosen = [...$("tabs").children].find((button) => button.textContent === name);
  chosen?.setAttribute("aria-current", "page");
  changed();
}

$("filter").addEventListener("input", changed);
// A link to a view, or the link with a new token, followed while the page is open.
addEventListener("hashchange", () => location.reload());
addEventListener("keydown", (event) => {
  if (event.key === "/" && document.activeElement !== $("filter")) {
    event.preventDefault();
    $("filter").focus();
  }
});

async function followStore() {
  for (;;) {
    try {
      store = await (await request("/keelson/v1/store/members")).json();
      changed();
    } catch (error) {
      if (error.code === 404 || error.code === 403) return;
    }
    await new Promise((resolve) => setTimeout(resolve, 2000));
  }
}

choose(current);
if (hasToken()) {
  for (const [name, path] of Object.entries(COLLECTIONS)) follow(path, maps[name], changed, state);
  followStore();
  setInterval(changed, 10_000);
} else {
  state("no token: open the link that `keelson up` printed", false);
}

// The shell: the parts and the way between them, the key, the colours, and what is wrong with the service.

import * as api from "./api.js";
import { Status } from "./status.js";

const PARTS = ["try", "jobs", "service", "search"];
const DARK = "clip-queue-theme";
const by = (id) => document.getElementById(id);
const status = new Status();
let life = new AbortController(); // of what is mounted with this key
let mounted = new Set();

// A short word for everybody, screen readers too.
function say(text) {
  by("said").textContent = text;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => (by("said").textContent = ""), 6000);
}

const chosen = () => (PARTS.includes(location.hash.slice(1)) ? location.hash.slice(1) : "try");

async function show() {
  const part = chosen();
  for (const name of PARTS) by(`part-${name}`).hidden = name !== part;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${part}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${part[0].toUpperCase()}${part.slice(1)} - clip-queue`;
  if (mounted.has(part)) return;
  mounted.add(part);
  const { signal } = life;
  const { mount } = await import(`./${part}.js`);
  if (!signal.aborted) mount(by(`part-${part}`), { api, status, say, signal });
}

// Each part begins anew: what one key has seen, another does not.
function restart() {
  life.abort();
  life = new AbortController();
  mounted = new Set();
  for (const name of PARTS) by(`part-${name}`).replaceChildren();
  show();
  status.look();
}

function askForKey() {
  by("key").hidden = false;
  by("change-key").hidden = true;
  by("banner").textContent = api.key.get() ? "The service refused this key." : "";
}

by("key").addEventListener("submit", (event) => {
  event.preventDefault();
  api.key.set(by("key-value").value.trim());
  by("key-value").value = "";
  by("key").hidden = true;
  restart();
});
by("change-key").addEventListener("click", () => {
  askForKey();
  by("banner").textContent = "";
  by("key-value").focus();
});
api.onRefused(askForKey);

let wrong = "";
status.subscribe(({ latest, failure }) => {
  if (failure?.status === 401) return;
  const before = wrong;
  wrong = failure?.message ?? latest?.problem ?? "";
  const banner = by("banner");
  if (wrong) {
    const text = failure ? wrong : `The service is not ready: ${wrong}`;
    banner.textContent = `${text} This page goes on by itself when the service does.`;
  } else if (latest) {
    if (by("key").hidden) banner.textContent = "";
    if (before) say("The service is well again.");
  }
  if (!latest) return;
  by("change-key").hidden = !api.key.get() || !by("key").hidden;
  by("version").textContent = `clip-queue ${latest.version}`;
  document.querySelector('nav a[href="#search"]').hidden = !latest.searches.length;
});

function paint(theme) {
  const dark = theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  if (theme) document.documentElement.dataset.theme = theme;
  by("theme").textContent = dark ? "Light" : "Dark";
  by("theme").setAttribute("aria-label", dark ? "Light colours" : "Dark colours");
  return dark;
}
by("theme").addEventListener("click", () => {
  const next = paint(localStorage.getItem(DARK)) ? "light" : "dark";
  localStorage.setItem(DARK, next);
  paint(next);
});
paint(localStorage.getItem(DARK));

// What is dropped beside the place for it must not replace the page.
for (const event of ["dragover", "drop"]) document.addEventListener(event, (it) => it.preventDefault());
addEventListener("hashchange", show);
show();
status.start();

// Service: is it well, and if not, what is full? With the last ten minutes.

import { chart } from "./chart.js";
import { bytes, count, el, span, table } from "./dom.js";

const FULL = 0.8; // share of a limit from which it is worth a word
const STALLED = 60; // seconds without a row
const LANES = { interactive: "requests", background: "jobs", bulk: "datasets" };
const STAGES = { queue: "in the queue", prepare: "reading", wait: "until the model is free", forward: "in the model" };

const per = (value) => `${value < 10 ? value.toFixed(1) : count(Math.round(value))} /s`;
const percent = (value) => `${Math.round(value * 100)} %`;

export function mount(root, { status, signal }) {
  const verdict = el("p", { class: "verdict", role: "status" });
  const meters = el("ul", { class: "meters", "aria-label": "How full it is" });
  const work = chart("Requests and items, each second", ["requests", "items"]);
  const times = chart("Where a request's time goes", Object.values(STAGES));
  const waiting = chart("Unfinished items", Object.values(LANES));
  const busy = chart("Share of the time in which workers compute", ["busy"], 1);
  const tables = el("div");
  root.append(
    el("h2", {}, "Is it well?"), verdict, meters,
    el("div", { class: "charts" }, work.figure, times.figure, waiting.figure, busy.figure), tables);
  let before = null;
  let shown = "";

  status.subscribe(({ latest, failure, recent }) => {
    if (!latest) {
      if (failure) say(verdict, failure.status === 401 ? "A key is needed to see it." : failure.message, false);
      return;
    }
    const full = gauges(latest);
    const wrong = troubles(latest, full);
    say(verdict, wrong.join(" ") || "It is well.", !wrong.length);
    meters.replaceChildren(...full.map(gauge));
    const line = (read) => recent.map((sample) => [sample.at, read(sample) ?? null]);
    work.update(latest.now, [line((it) => it.requests_per_s), line((it) => it.items_per_s)], per);
    times.update(latest.now, Object.keys(STAGES).map((stage) => line((it) => it.stages[stage])), span);
    const whole = (number) => count(Math.round(number));
    waiting.update(latest.now, Object.keys(LANES).map((lane) => line((it) => it.lanes?.[lane])), whole);
    busy.update(latest.now, [line((it) => it.busy)], percent);
    const next = [workers(latest, before), models(latest), runs(latest), failures(recent)].filter(Boolean);
    const text = next.map((each) => each.textContent).join();
    if (text !== shown) tables.replaceChildren(...next); // else a selection or the focus would be lost
    shown = text;
    before = latest;
  }, signal);
}

function say(place, text, well) {
  place.classList.toggle("well", well);
  if (place.textContent !== text) place.textContent = text;
}

// What has a limit: [name, share, words].
function gauges({ lanes, store, models }) {
  const out = lanes.map((lane) => {
    const of = models.length > 1 ? ` of ${lane.model}` : "";
    const words = `${count(lane.items)} of ${count(lane.limit)} items`;
    return [`Queue of ${LANES[lane.lane] ?? lane.lane}${of}`, lane.items / lane.limit, words];
  });
  if (store?.held_limit) {
    const held = `${bytes(store.held_bytes)} of ${bytes(store.held_limit)}`;
    out.push(["Jobs and results", store.held_bytes / store.held_limit, held]);
  }
  if (store?.memory_limit) {
    const used = `${bytes(store.memory_bytes)} of ${bytes(store.memory_limit)}`;
    out.push(["Memory of the store", store.memory_bytes / store.memory_limit, used]);
  }
  return out;
}

function troubles({ problem, runs }, full) {
  const out = problem ? [`It is not ready: ${problem}`] : [];
  for (const [name, share, words] of full) if (share >= FULL) out.push(`${name}: ${percent(share)} full (${words}).`);
  for (const run of runs) {
    if (run.stalled_s > STALLED) out.push(`A dataset of ${run.model} has had no row for ${span(run.stalled_s)}.`);
  }
  return out;
}

function gauge([name, share, words]) {
  const bar = el("meter", { min: 0, max: 1, high: FULL, optimum: 0, "aria-label": `${name}: ${words}` });
  bar.value = Math.min(1, share);
  return el("li", {}, el("span", {}, name), bar, el("span", {}, words));
}

function workers(latest, before) {
  if (!latest.workers.length) return el("p", { class: "bad" }, "No worker is there.");
  const rows = latest.workers.map((worker) => {
    const then = before?.workers.find((each) => each.id === worker.id);
    const [items, batches, busy] = ["items", "batches", "busy_s"].map((name) => worker[name] - (then?.[name] ?? 0));
    const seconds = then ? latest.now - before.now : 0;
    const share = seconds > 0 ? percent(Math.max(0, Math.min(1, busy / seconds))) : "-";
    const card = worker.gpu.busy === undefined ? "" : `, card ${percent(worker.gpu.busy)}`;
    return [worker.id, worker.device, worker.models.join(", "), batches > 0 ? (items / batches).toFixed(1) : "-",
      share + card, count(worker.items)];
  });
  return table("Workers", ["Worker", "Device", "Models", "Batch", "Busy", "Items so far"], rows);
}

function models(latest) {
  const rows = latest.models.map((it) => [it.name, count(it.workers), it.fingerprints.join(" ") || "-",
    it.source ?? "-", it.dimension ? `${it.dimension} numbers` : "-", it.image_size?.join(" × ") ?? "-", it.precision ?? "-"]);
  return table("Models", ["Model", "Workers", "Fingerprint", "Source", "Vector", "Sees", "Precision"], rows);
}

function runs({ runs }) {
  const rows = runs.map((run) => [run.model, per(run.rows_per_s), run.stalled_s > STALLED ? span(run.stalled_s) : "no"]);
  return rows.length > 0 && table("Datasets under way", ["Model", "Rows", "Stands still"], rows);
}

function failures(recent) {
  const found = new Map();
  for (const { at, failures } of recent) {
    for (const [code, number] of Object.entries(failures)) found.set(code, [(found.get(code)?.[0] ?? 0) + number, at]);
  }
  const rows = [...found].sort(([, a], [, b]) => b[1] - a[1]).map(([code, [number, at]]) =>
    [code, count(number), new Date(at * 1000).toLocaleTimeString()]);
  return rows.length ? table("Requests that failed in the last ten minutes", ["Code", "Number", "Last"], rows)
    : el("p", { class: "hint" }, "No request failed in the last ten minutes.");
}

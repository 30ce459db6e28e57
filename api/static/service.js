// Service: is it well, and if not, what is full? With the last ten minutes.

import { chart } from "./chart.js";
import { STAGES, bytes, count, el, span, table } from "./dom.js";

const FULL = 0.8; // share of a limit from which it is worth a word
const STALLED = 60; // seconds without a row
const LINES = 5; // workers with lines of their own: the table has all
const LANES = { interactive: "requests", background: "jobs", bulk: "datasets" };

const per = (value) => `${value < 10 ? value.toFixed(1) : count(Math.round(value))} /s`;
const percent = (value) => `${Math.round(value * 100)} %`;

export function mount(root, { status, signal }) {
  const verdict = el("p", { class: "verdict", role: "status" });
  const meters = el("ul", { class: "meters", "aria-label": "How full it is" });
  const charts = [
    chart("Requests and items, each second"), chart("Where a request's time goes"), chart("Unfinished items"),
    chart("Share of the time in which each worker computes", 1), chart("Items in a batch, by worker"), chart("Memory of jobs and results"),
  ];
  const tables = el("div", { class: "tables" });
  root.append(el("h2", {}, "Is it well?"), verdict, meters, el("div", { class: "charts" }, charts.map((each) => each.figure)), tables);
  let shown = "";

  status.subscribe(({ latest, failure, recent }) => {
    if (!latest) {
      if (failure) say(verdict, failure.status === 401 ? "A key is needed to see it." : failure.message, false);
      return;
    }
    const full = gauges(latest);
    const wrong = troubles(latest, full, recent);
    say(verdict, wrong.join(" ") || "It is well.", !wrong.length);
    meters.replaceChildren(...full.map(gauge));
    const line = (read) => recent.map((sample) => [sample.at, read(sample) ?? null]);
    const named = (names, read) => Object.fromEntries(Object.entries(names).map(([key, name]) => [name, line((it) => read(it, key))]));
    const ids = Object.fromEntries(latest.workers.slice(0, LINES).map(({ id }) => [id, id]));
    const whole = (number) => count(Math.round(number));
    [
      [{ requests: line((it) => it.requests_per_s), items: line((it) => it.items_per_s) }, per],
      [named(STAGES, (it, stage) => it.stages[stage]), span],
      [named(LANES, (it, lane) => it.lanes?.[lane]), whole],
      [named(ids, (it, id) => it.workers[id]?.busy), percent],
      [named(ids, (it, id) => it.workers[id]?.batch), (value) => value.toFixed(1)],
      [{ held: line((it) => it.held_bytes) }, bytes],
    ].forEach(([lines, write], i) => charts[i].update(latest.now, lines, write));
    const next = [workers(latest, recent), models(latest), runs(latest), failures(recent)].filter(Boolean);
    const text = next.map((each) => each.textContent).join();
    if (text !== shown) tables.replaceChildren(...next); // else a selection or the focus would be lost
    shown = text;
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
  if (store?.memory_bytes) {
    const { memory_bytes: used, memory_limit: most } = store;
    out.push(["Memory of the store", most ? used / most : 0, most ? `${bytes(used)} of ${bytes(most)}` : `${bytes(used)}, no limit set`]);
  }
  return out;
}

function troubles({ problem, runs, now }, full, recent) {
  const out = problem ? [`It is not ready: ${problem}`] : [];
  for (const [name, share, words] of full) if (share >= FULL) out.push(`${name}: ${percent(share)} full (${words}).`);
  const lately = recent.filter(({ at }) => at > now - 60).flatMap(({ failures }) => Object.entries(failures));
  const refused = lately.reduce((sum, [code, number]) => sum + (code.endsWith("_full") ? number : 0), 0);
  if (refused) out.push(`In the last minute ${count(refused)} requests were refused because it was full.`);
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

function workers(latest, recent) {
  if (!latest.workers.length) return el("p", { class: "bad" }, "No worker is there.");
  const rows = latest.workers.map((worker) => {
    const own = recent.map((sample) => sample.workers[worker.id]).filter(Boolean);
    const mean = (list) => list.length && list.reduce((sum, each) => sum + each, 0) / list.length;
    const [busy, batches] = [own.map((each) => each.busy), own.map((each) => each.batch).filter(Boolean)];
    const card = worker.gpu.busy === undefined ? "" : `, card ${percent(worker.gpu.busy)}`;
    return [worker.id, worker.device, worker.models.join(", "), busy.length ? percent(busy.at(-1)) + card : "-",
      busy.length ? percent(mean(busy)) : "-", batches.length ? mean(batches).toFixed(1) : "-", count(worker.items)];
  });
  return table("Workers", ["Worker", "Device", "Models", "Busy now", "Busy, 10 min", "Batch, 10 min", "Items so far"], rows);
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
  const ended = recent.filter((sample) => sample.ended.failed);
  if (ended.length) found.set("jobs that failed", [ended.reduce((sum, it) => sum + it.ended.failed, 0), ended.at(-1).at]);
  const rows = [...found].sort(([, a], [, b]) => b[1] - a[1]).map(([code, [number, at]]) =>
    [code, count(number), new Date(at * 1000).toLocaleTimeString()]);
  return rows.length ? table("What failed in the last ten minutes", ["Code", "Number", "Last"], rows)
    : el("p", { class: "hint" }, "Nothing failed in the last ten minutes.");
}

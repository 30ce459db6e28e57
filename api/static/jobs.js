// Jobs: one's own, live; pictures dropped here become jobs.

import { count, el, span } from "./dom.js";
import { bytesFor, inline, intake, take } from "./pictures.js";

const INTERVAL = 3000; // milliseconds between two looks at the list
const STREAMS = 3; // followed at once: a browser opens six connections to a server, and others are needed
const MOST_BYTES = 24e6; // of a job's body, however much the service takes: it is held in memory
const ENDED = ["succeeded", "failed", "cancelled", "expired"];
const TASKS = {
  embed_image: "pictures to vectors",
  embed_text: "words to vectors",
  compare: "a comparison",
  embed_dataset: "a dataset",
};

export function mount(root, { api, status, say, signal }) {
  const rows = new Map(); // by id
  const names = new Map(); // by id, of what was dropped here
  const following = new Set();
  let limit = 20;
  let turns = 0; // of looks: an earlier one's answer is too old
  let timer = 0;
  let streams = new AbortController();
  const note = el("p", { class: "note", role: "status" });
  const none = el("p", { class: "hint" }, "You have no jobs now. Results are kept for a while, then they go.");
  const listed = el("ul", { class: "jobs", "aria-label": "Your jobs" });
  const more = el("button", { type: "button", hidden: true, on: { click: () => ((limit = 100), look()) } }, "Show more");
  const { place, option, smaller } = intake("Drop, paste or pick many pictures", submit, signal);
  root.append(
    el("h2", {}, "Your jobs"),
    el("p", { class: "lead" }, "A job is work that nobody waits for. Drop many pictures here and they become one."),
    place, option,
    note, none, listed, more);

  async function look() {
    clearTimeout(timer);
    const turn = ++turns;
    if (root.offsetParent === null || document.hidden) {
      streams.abort(); // a browser has few connections to a server, for all its tabs
      streams = new AbortController();
    } else if (status.failure?.status !== 401) {
      await list(() => turn !== turns).catch(() => {}); // the banner says it
    }
    if (turn === turns && !signal.aborted) timer = setTimeout(look, INTERVAL);
  }

  async function list(old) {
    const { jobs, cursor } = await api.get(`jobs?limit=${limit}`, { signal });
    if (old()) return;
    const now = new Set(jobs.map((job) => job.id));
    for (const [id, row] of rows) if (!now.has(id)) (row.item.remove(), rows.delete(id));
    jobs.forEach((job, place) => {
      const { item } = show(job);
      if (listed.children[place] !== item) listed.insertBefore(item, listed.children[place] ?? null);
    });
    none.hidden = jobs.length > 0;
    more.hidden = !cursor || limit === 100;
    const unfinished = jobs.filter((job) => !ENDED.includes(job.state)).reverse(); // the first in line first
    for (const job of unfinished) follow(job.id);
    for (const job of unfinished) if (job.state === "queued" && !old()) show(await api.get(`jobs/${job.id}`, { signal })); // its place
  }

  async function follow(id) {
    if (following.has(id) || following.size >= STREAMS) return;
    following.add(id);
    try {
      for await (const job of api.events(`jobs/${id}/events`, AbortSignal.any([signal, streams.signal]))) show(job);
    } catch {
      // the list is looked at again, and followed from there
    }
    following.delete(id);
  }

  function show(job) {
    let row = rows.get(job.id);
    if (!row) rows.set(job.id, (row = newRow(job.id)));
    const before = row.job;
    if (before && ENDED.includes(before.state) && !ENDED.includes(job.state)) return row; // it is an older look
    row.job = { ...job, queue: job.queue ?? (job.state === "queued" ? before?.queue : null) };
    row.draw(row.job);
    if (before && before.state !== job.state && ENDED.includes(job.state)) say(`A job has ${VERBS[job.state]}.`);
    return row;
  }

  function newRow(id) {
    const short = id.slice(0, 8);
    const state = el("span", { class: "state" });
    const title = el("h3");
    const bar = el("progress", { max: 1, "aria-label": `Progress of job ${short}` });
    const about = el("p");
    const error = el("p", { class: "bad" });
    const button = (text, act) =>
      el("button", { type: "button", "aria-label": `${text}: job ${short}`, on: { click: () => tell(act) } }, text);
    const cancel = button("Cancel", async () => show(await api.get(`jobs/${id}`, { method: "DELETE" })));
    const asJson = button("Result as JSON", () => download(id, "application/json", "json"));
    const asNpy = button("Result as .npy", () => download(id, "application/x-npy", "npy"));
    const item = el("li", { "data-job": id }, el("div", { class: "head" }, state, title), bar, about, error,
      el("div", { class: "buttons" }, cancel, asJson, asNpy));
    let report = null; // of a run that has ended: its failures by reason
    const settle = async (job) => {
      report = job.progress?.reasons ?? {};
      const found = await api.get(`jobs/${id}/result`, { signal }).catch(() => ({}));
      report = found.errors ?? report;
      draw(job);
    };
    const draw = (job) => {
      const ended = ENDED.includes(job.state);
      const run = job.task === "embed_dataset";
      const { total, done, failed } = run && job.progress?.rows ? job.progress.rows : job.items;
      item.className = job.state;
      state.textContent = job.state;
      title.textContent = `${names.get(id) ?? TASKS[job.task] ?? job.task}, ${short}`;
      if (total) bar.value = (done + failed) / total;
      bar.hidden = ended;
      about.textContent = [
        `${count(done)} of ${total ? count(total) : "?"} ${run ? "rows" : "items"} done`,
        failed && `${count(failed)} failed`,
        job.queue && (job.queue.position ? `${count(job.queue.position)} before it` : "next in line"),
        !ended && job.progress?.rows_per_s && `${count(job.progress.rows_per_s)} rows/s`,
        !ended && job.progress?.eta_s && `${span(job.progress.eta_s)} to go`,
        `model ${job.model}`,
        job.finished && `took ${span((Date.parse(job.finished) - Date.parse(job.created)) / 1000)}`,
      ].filter(Boolean).join(" · ");
      if (run && failed && job.state === "succeeded" && !report) settle(job);
      const found = Object.entries(report ?? job.progress?.reasons ?? {});
      const reasons = found.map(([code, about]) => `${count(about.rows ?? about)} ${code}`);
      error.textContent = [job.error?.message, reasons.length && `Failed rows: ${reasons.join(", ")}.`].filter(Boolean).join(" ");
      cancel.hidden = ended;
      asJson.hidden = job.state !== "succeeded";
      asNpy.hidden = asJson.hidden || run;
    };
    return { item, draw, job: null };
  }

  async function tell(act) {
    try {
      await act();
    } catch (error) {
      say(error.message);
    }
  }

  async function download(id, type, ending) {
    const response = await api.call(`jobs/${id}/result`, { headers: { Accept: type }, signal });
    const url = URL.createObjectURL(await response.blob());
    el("a", { href: url, download: `${id}.${ending}` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  }

  async function submit(files) {
    const it = status.model();
    const limits = status.latest?.limits;
    if (!it || !limits) return say("The service does not answer now.");
    const most = Math.min(MOST_BYTES, limits.max_body_bytes * 0.9);
    let [images, held, first, left] = [[], 0, "", 0];
    const send = async () => {
      if (!images.length) return;
      note.textContent = `Sending ${count(images.length)} pictures …`;
      const { body } = await patiently({ task: "embed_image", image: images, on_error: "skip" });
      names.set(body.id, images.length > 1 ? `${first} and ${images.length - 1} more` : first);
      [images, held] = [[], 0];
      await look();
    };
    try {
      for (const file of files) {
        const picture = await take(file, limits, false);
        if (picture.error && ++left) continue;
        const sent = await bytesFor(picture, Math.max(...(it.image_size ?? [0])), smaller.checked);
        const image = await inline(sent).catch(() => null); // null: a folder, or a file that has gone
        if (!image && ++left) continue;
        if (images.length >= limits.max_job_items || held + image.value.length > most) await send();
        if (!images.length) first = picture.name;
        images.push(image);
        held += image.value.length;
      }
      await send();
      note.textContent = left ? `Left out, too large or not to be read: ${count(left)}.` : "";
    } catch (error) {
      if (!signal.aborted) note.textContent = error.message;
    }
  }

  // A job that is refused for a moment is sent again; its key keeps it from being made twice.
  async function patiently(job) {
    const bytes = crypto.getRandomValues(new Uint8Array(16));
    const key = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    for (;;) {
      try {
        return await api.post("jobs", job, { signal, headers: { "Idempotency-Key": key } });
      } catch (error) {
        if (!error.passes || signal.aborted) throw error;
        note.textContent = `${error.message} It is sent again.`;
        await new Promise((go) => setTimeout(go, (error.retryAfter || 2) * 1000));
      }
    }
  }

  signal.addEventListener("abort", () => clearTimeout(timer));
  document.addEventListener("visibilitychange", look, { signal });
  addEventListener("hashchange", () => setTimeout(look), { signal });
  look();
}

const VERBS = { succeeded: "succeeded", failed: "failed", cancelled: "been cancelled", expired: "expired" };

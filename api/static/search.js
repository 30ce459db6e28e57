// Search: outputs of `clip-queue embed` that the service opens, through the routes that any client has (docs/http.md).
// Pictures come as blobs, because they need the key.

import { count, el } from "./dom.js";
import { bytesFor, inline, intake, take } from "./pictures.js";

const LIMIT = 24; // hits of a page

export function mount(root, { api, status, signal }) {
  const words = el("input", { type: "search", id: "search-words", maxLength: 2000, autocomplete: "off" });
  const outputs = el("select", { id: "search-output" });
  const form = el("form", { class: "search-form", on: { submit: byWords } },
    el("p", {}, el("label", { for: "search-output" }, "Search in "), outputs),
    el("p", {}, el("label", { for: "search-words" }, "for "), words, el("button", { type: "submit" }, "Search")));
  const note = el("p", { class: "note", role: "status" });
  const hits = el("ul", { class: "hits", "aria-label": "Hits" });
  const more = el("button", { type: "button", hidden: true, on: { click: () => page() } }, "More");
  const { place, option, smaller } = intake("Or drop, paste or pick a picture to find what is like it", byPicture, signal);
  root.append(el("h2", {}, "Search"), form, place, option, note, hits, more);

  let query = null; // {name, body, about} of the request whose pages are shown
  let next = null; // offset of its next page
  let running = null; // AbortController of what is under way
  let urls = []; // of pictures, to be let go

  let before = "";
  status.subscribe(({ latest }) => {
    const now = JSON.stringify(latest?.searches);
    if (!latest || now === before) return;
    before = now;
    const kept = outputs.value;
    outputs.replaceChildren(...latest.searches.map((each) => {
      const about = each.problem ? "cannot be read now" : `${count(each.rows)} rows, ${each.model}`;
      return el("option", { value: each.name }, `${each.name} (${about})`);
    }));
    if (latest.searches.some((each) => each.name === kept)) outputs.value = kept;
    if (!latest.searches.length) note.textContent = "No output is open for search (setting CLIP_QUEUE_SEARCH).";
  }, signal);

  function begin(body, about) {
    running?.abort();
    running = null;
    urls.forEach((url) => URL.revokeObjectURL(url));
    urls = [];
    hits.replaceChildren();
    query = { name: outputs.value, body, about };
    next = 0;
    return page();
  }

  async function page() {
    if (running || query === null || next === null) return;
    const asked = query;
    const control = (running = new AbortController());
    let found = null;
    more.hidden = true;
    note.textContent = "Searching …";
    try {
      const body = { ...asked.body, limit: LIMIT, offset: next };
      const either = AbortSignal.any([control.signal, signal]);
      found = (await api.post(`search/${encodeURIComponent(asked.name)}`, body, { signal: either })).body;
      if (asked !== query) return;
      const shown = new Set([...hits.children].map((each) => each.dataset.row));
      const fresh = found.hits.filter((hit) => !shown.has(String(hit.row))); // the output may have changed in between
      hits.append(...fresh.map(tile));
      next = found.next_offset;
      const number = hits.children.length;
      note.textContent = number ? `${count(number)} of ${count(found.rows)} rows, ${asked.about}.` : "Nothing found.";
    } catch (error) {
      if (asked === query && error.name !== "AbortError") note.textContent = error.message;
    } finally {
      if (running === control) {
        running = null;
        more.hidden = next === null || asked !== query;
        if (found && !more.hidden && more.getBoundingClientRect().top < innerHeight) page();
      }
    }
  }

  function tile(hit) {
    const name = hit.caption || hit.image_path || `row ${hit.row}`;
    const frame = el("div", { class: "thumb" });
    if (hit.image) picture(frame, hit.image, name);
    else frame.textContent = "no picture";
    const like = { type: "button", "aria-label": `Like this one: ${name}`, on: { click: () => begin({ row: hit.row }, `like “${name}”`) } };
    const caption = el("span", { class: "caption", title: hit.image_path || "" }, name);
    return el("li", { "data-row": String(hit.row) }, frame, caption,
      el("span", { class: "value" }, hit.score.toFixed(3)), el("button", like, "Like this one"));
  }

  async function picture(frame, path, name) {
    try {
      const blob = await (await patiently(() => api.call(path, { signal }))).blob();
      if (!frame.isConnected) return; // of an earlier search
      const url = URL.createObjectURL(blob);
      urls.push(url);
      const image = el("img", { src: url, alt: name, decoding: "async" });
      image.addEventListener("error", () => (frame.textContent = "the picture is broken"));
      frame.replaceChildren(image);
    } catch (error) {
      frame.textContent = error.message;
    }
  }

  // An answer; where the service is full for a moment it is asked again.
  async function patiently(asked) {
    for (let turn = 1; ; turn++) {
      try {
        return await asked();
      } catch (error) {
        if (error.status !== 429 || turn === 5) throw error;
        await new Promise((go) => setTimeout(go, 300 * turn));
      }
    }
  }

  function byWords(event) {
    event.preventDefault();
    const text = words.value.trim();
    if (text && outputs.value) begin({ text }, `nearest to “${text}”`);
  }

  async function byPicture([file]) {
    const { latest } = status;
    if (!latest || !outputs.value) return;
    const taken = await take(file, latest.limits, false);
    if (taken.error) return (note.textContent = taken.error);
    const searched = latest.searches.find((each) => each.name === outputs.value);
    const side = Math.max(...(status.model(searched?.model)?.image_size ?? [0]));
    const image = await inline(await bytesFor(taken, side, smaller.checked)).catch((error) => void (note.textContent = error.message));
    if (image) begin({ image }, `like “${taken.name}”`);
  }

  const scrolled = new IntersectionObserver((entries) => entries.some((each) => each.isIntersecting) && page());
  scrolled.observe(more);
  signal.addEventListener("abort", () => scrolled.disconnect());
}

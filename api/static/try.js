// Try: pictures and words, compared. The vectors come from /clip, the cosines are computed here.

import { snippets } from "./code.js";
import { STAGES, el, parts, span, table } from "./dom.js";
import { bytesFor, inline, intake, take } from "./pictures.js";

const MOST = { pictures: 24, words: 100, kept: 2000 };
const PAUSE = 300; // milliseconds after the last letter
const FIRST = "dog\ncat\npizza\nrocket";
const TIMES = { ...STAGES, rest: "on the way" };
const LEAD =
  "CLIP turns a picture, or words, into a list of numbers: an arrow. Where two arrows point the same way, the words " +
  "fit the picture. The number says how much: 1 is the same direction, 0 is nothing in common.";

export function mount(root, { api, status, say, signal }) {
  const pictures = [];
  const texts = new Map(); // by model and text: {vector} or {error}
  let timer = 0;
  let running = false;
  let again = false;

  const words = el("textarea", { id: "words", rows: 6, value: FIRST, spellcheck: false, on: { input: () => changed() } });
  const softmax = tick("Show shares", () => draw());
  const { place, option, smaller } = intake("Drop, paste or pick pictures", add, signal, () => changed(0));
  const model = el("select", { id: "model", on: { change: () => choose() } });
  const modelLine = el("p", {}, el("label", { for: "model" }, "Model "), model);
  const notice = el("p", { class: "notice" });
  const explained = el("p", { class: "hint" });
  const note = el("p", { class: "note", role: "status" });
  const samples = el("div", { class: "samples", role: "group", "aria-label": "Samples" });
  const cards = el("ul", { class: "cards", "aria-label": "Pictures" });
  const tables = el("div", { class: "tables" });
  const timing = el("div");
  const code = codeBox(say);

  root.append(
    el("h2", {}, "Which words fit which picture?"),
    el("p", { class: "lead" }, LEAD),
    notice,
    el("div", { class: "columns" },
      el("div", {},
        el("h3", {}, "Pictures"),
        el("p", { class: "hint" }, "Click one of these, or bring your own:"),
        samples,
        place),
      el("div", {},
        el("h3", {}, el("label", { for: "words" }, "Words, a line each")),
        words,
        modelLine,
        softmax.line,
        explained,
        option)),
    note, cards, tables, timing, code.box);
  fill(samples, add, api).catch(() => (samples.textContent = "The samples could not be read."));

  async function add(files) {
    const room = MOST.pictures - pictures.length;
    if (files.length > room) say(`At most ${MOST.pictures} pictures fit here.`);
    const limits = status.latest?.limits ?? { max_image_bytes: Infinity, max_image_pixels: 5e7 };
    for (const file of files.slice(0, Math.max(0, room))) {
      const picture = { ...(await take(file, limits)), vectors: new Map(), bars: el("div") };
      const remove = el("button", { type: "button", "aria-label": `Remove ${picture.name}` }, "Remove");
      const frame = el("div", { class: "thumb" }, picture.thumb ?? "no preview");
      if (picture.thumb) frame.setAttribute("aria-hidden", "true");
      const card = el("li", {}, el("div", { class: "side" }, frame, remove), el("div", {}, el("h3", {}, picture.name), picture.bars));
      remove.addEventListener("click", () => {
        pictures.splice(pictures.indexOf(picture), 1);
        card.remove();
        (cards.querySelector("button") ?? root.querySelector(".file")).focus();
        draw();
      });
      pictures.push(picture);
      cards.append(card);
    }
    changed(0);
  }

  const lines = () => [...new Set(words.value.split("\n").map((line) => line.trim()).filter(Boolean))];
  const list = () => lines().slice(0, MOST.words);
  const about = () => status.model(model.value);
  const mark = (it) => `${it.name} ${it.fingerprints}`;
  const markOf = (picture, it) => `${mark(it)} ${smaller.checked && picture.width > 0}`;

  function changed(pause = PAUSE) {
    clearTimeout(timer);
    timer = setTimeout(run, pause);
  }

  async function run() {
    again = true;
    if (running) return;
    running = true;
    while (again && !signal.aborted) {
      again = false;
      await once();
    }
    running = false;
  }

  async function once() {
    const it = about();
    if (!it?.workers) return draw(); // the banner says why; it is tried again when that has changed
    try {
      await embedWords(it);
      await embedPictures(it);
      note.textContent = lines().length > MOST.words ? `The first ${MOST.words} lines are compared.` : "";
    } catch (error) {
      if (error.name === "AbortError") return;
      note.textContent = error.passes ? `${error.message} It is tried again.` : error.message;
      if (error.passes) changed((error.retryAfter || 2) * 1000);
    }
    draw();
  }

  async function embedWords(it) {
    if (texts.size > MOST.kept) texts.clear();
    const missing = list().filter((text) => !texts.has(mark(it) + text));
    for (const part of parts(missing, status.latest?.limits.max_texts ?? 100)) {
      const found = await embed("text", part, it);
      part.forEach((text, i) => texts.set(mark(it) + text, found[i]));
    }
  }

  async function embedPictures(it) {
    const missing = pictures.filter((picture) => !picture.error && !picture.vectors.has(markOf(picture, it)));
    const { max_items: items = 8, max_body_bytes: most = 6e7 } = status.latest?.limits ?? {};
    let [part, held] = [[], 0];
    const send = async () => {
      const found = part.length ? await embed("image", part.map(({ image }) => image), it) : [];
      part.forEach(({ picture, mark }, i) => picture.vectors.set(mark, found[i]));
      [part, held] = [[], 0];
    };
    for (const picture of missing) {
      const mark = markOf(picture, it);
      try {
        const image = await inline(await bytesFor(picture, Math.max(...it.image_size), smaller.checked));
        if (part.length === items || held + image.value.length > most * 0.9) await send();
        part.push({ picture, mark, image });
        held += image.value.length;
      } catch (error) {
        if (error.code !== "unreadable") throw error;
        picture.error = error.message; // a folder, or a file that has gone
      }
    }
    await send();
  }

  // {vector} or {error} of each. A request that is refused whole, for one bad item or its size, is made for each alone.
  async function embed(kind, items, it) {
    try {
      const asked = { [kind]: items, on_error: "skip", ...(it.default ? {} : { clip_version_id: it.name }) };
      const answer = await api.post(`clip/embed_${kind}`, asked, { signal });
      showTime(answer, kind, items.length);
      const errors = new Map((answer.body.errors ?? []).map((error) => [error.index, error.message]));
      return answer.body.embeddings.map((row, i) => (row ? { vector: unit(row) } : { error: errors.get(i) }));
    } catch (error) {
      if (![400, 413, 422].includes(error.status)) throw error;
      if (items.length === 1) return [{ error: error.message }];
      const out = [];
      for (const item of items) out.push(...(await embed(kind, [item], it)));
      return out;
    }
  }

  function showTime({ headers, seconds }, kind, number) {
    const stages = (headers.get("Server-Timing") ?? "").split(",").map((each) => each.trim().split(";dur="));
    const times = stages.filter(([name]) => name in TIMES).map(([name, value]) => [name, Number(value) / 1000]);
    times.push(["rest", Math.max(0, seconds - times.reduce((sum, [, each]) => sum + each, 0))]);
    const bar = el("div", { class: "stages", "aria-hidden": "true" }, times.map(([name, value]) => {
      const piece = el("span", { class: `stage-${name}` });
      piece.style.flexGrow = value * 1000 + 0.01; // milliseconds: a sum below one would not fill the line
      return piece;
    }));
    const what = kind === "image" ? "pictures" : "words";
    timing.replaceChildren(
      el("h3", {}, `Time of the last request (${what}: ${number}): ${span(seconds)}`), bar,
      el("ul", { class: "legend" }, times.map(([name, value]) =>
        el("li", { class: `stage-${name}` }, `${TIMES[name]} ${span(value)}`))));
  }

  function draw() {
    const it = about();
    if (!it) return;
    const shown = list();
    const found = shown.map((text) => texts.get(mark(it) + text) ?? {});
    const rows = pictures.map((picture) => {
      const own = picture.error ? picture : picture.vectors.get(markOf(picture, it)) ?? {};
      const cosines = found.map(({ vector }) => (own.vector && vector ? dot(own.vector, vector) : null));
      return { picture, vector: own.vector, error: own.error, cosines };
    });
    const most = Math.max(0.01, ...rows.flatMap((row) => row.cosines));
    const shares = softmax.box.checked && it.logit_scale;
    for (const row of rows) {
      const values = shares ? softmaxOf(row.cosines, it.logit_scale) : row.cosines;
      row.picture.bars.replaceChildren(row.error ? el("p", { class: "bad" }, row.error)
        : row.vector ? bars(shown, values, found, shares ? 1 : most, shares)
        : el("p", { class: "hint" }, it.workers ? "Being looked at …" : "Waiting for the service …"));
    }
    const good = rows.filter((row) => row.vector);
    const names = good.map((row) => row.picture.name);
    const heats = [];
    if (good.length > 1 && shown.length > 1) {
      const cells = good.map((row, i) => [names[i], ...row.cosines.map((value) => heat(value, most))]);
      heats.push(table("Pictures and words: cosines", ["Picture", ...shown], cells));
    }
    if (good.length > 1) {
      const cells = good.map((row, i) => [names[i], ...good.map((other) => heat(dot(row.vector, other.vector), 1))]);
      heats.push(table("Picture against picture: cosines", ["Picture", ...names], cells));
    }
    tables.replaceChildren(...heats);
    const url = api.address("").href.replace(/\/$/, "");
    const files = rows.filter((row) => !row.error).map((row) => row.picture.name).slice(0, status.latest?.limits.max_items);
    const keyed = Boolean(api.key.get());
    code.show(snippets({ url, model: it.name, first: it.default, files, words: shown, keyed }));
  }

  function choose() {
    const it = about();
    const sees = it.dimension && `${it.name} (${it.source}) sees ${it.image_size.join(" × ")} pixels and answers with ${it.dimension} numbers.`;
    notice.textContent = [sees, it.notice && `${it.notice}.`].filter(Boolean).join(" ");
    softmax.box.disabled = !it.logit_scale;
    explained.textContent = it.logit_scale
      ? `Shares: the cosines times ${it.logit_scale.toFixed(1)}, the model's own scale, as a softmax. For each picture they add up to 100 %.`
      : "Shares need a worker that tells the model's scale.";
    changed(0);
  }

  let before = "";
  status.subscribe(({ latest }) => {
    const now = JSON.stringify(latest?.models.map((it) => [it.name, it.workers > 0, it.fingerprints]));
    if (now === before) return;
    before = now;
    if (!latest?.models.length) return;
    const kept = model.value;
    model.replaceChildren(...latest.models.map((it) => el("option", { value: it.name }, it.name)));
    model.value = latest.models.some((it) => it.name === kept) ? kept : status.model().name;
    modelLine.hidden = latest.models.length < 2;
    choose();
  }, signal);
}

function bars(words, values, about, most, shares) {
  const best = values.indexOf(Math.max(...values.filter((value) => value !== null)));
  return el("ol", { class: "bars" }, words.map((word, i) => {
    const bar = el("span", { class: "bar", "aria-hidden": "true" }, el("span"));
    bar.firstChild.style.width = `${Math.max(0, Math.min(1, (values[i] ?? 0) / most)) * 100}%`;
    const known = shares ? `${((values[i] ?? 0) * 100).toFixed(1)} %` : values[i]?.toFixed(3);
    const first = i === best && words.length > 1;
    return el("li", { class: first ? "best" : "" }, el("span", { class: "word" }, word), bar,
      el("span", { class: "value" }, values[i] === null ? about[i].error ?? "…" : known,
        first && el("span", { class: "hidden" }, ", the best")));
  }));
}

function heat(value, most) {
  if (value === null) return "-";
  const cell = el("span", { class: "heat" }, value.toFixed(3));
  cell.style.setProperty("--heat", `${Math.max(0, Math.min(1, value / most)) * 60}%`);
  return cell;
}

function tick(text, act, checked = false) {
  const box = el("input", { type: "checkbox", checked, on: { change: act } });
  return { box, line: el("label", { class: "tick" }, box, text) };
}

// The pictures of `clip-queue demo`, each a button.
async function fill(place, add, api) {
  const listed = await api.get("page/samples/samples.json");
  place.append(...listed.map(({ name, file }) => {
    const image = el("img", { src: api.address(`page/samples/${file}`).href, alt: "", width: 48, height: 48 });
    const pick = async () => {
      const blob = await (await api.call(`page/samples/${file}`)).blob();
      add([new File([blob], file, { type: blob.type })]);
    };
    return el("button", { type: "button", "aria-label": `Sample: ${name}`, title: name, on: { click: pick } }, image);
  }));
}

function codeBox(say) {
  const choice = el("select", { id: "code-language" });
  const text = el("code");
  const copy = el("button", { type: "button" }, "Copy");
  let found = [];
  const write = () => (text.textContent = found[choice.selectedIndex]?.text ?? "");
  choice.addEventListener("change", write);
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text.textContent);
      say("Copied.");
    } catch { // not over plain http from elsewhere
      getSelection().selectAllChildren(text);
      say("It is selected: copy it with Ctrl+C.");
    }
  });
  const scrolled = { tabIndex: 0, role: "region", "aria-label": "Code" };
  const box = el("details", { class: "code" }, el("summary", {}, "The same from your own program"),
    el("p", {}, el("label", { for: "code-language" }, "As "), choice, " ", copy), el("pre", scrolled, text));
  const show = (snippets) => {
    found = snippets;
    if (!choice.length) choice.append(...snippets.map(({ name }) => el("option", {}, name)));
    box.hidden = !snippets.length;
    write();
  };
  return { box, show };
}

function unit(row) {
  const length = Math.hypot(...row) || 1;
  return Float32Array.from(row, (value) => value / length);
}

const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);

function softmaxOf(cosines, scale) {
  const known = cosines.filter((value) => value !== null);
  const most = Math.max(...known);
  const total = known.reduce((sum, value) => sum + Math.exp(scale * (value - most)), 0);
  return cosines.map((value) => (value === null ? null : Math.exp(scale * (value - most)) / total));
}

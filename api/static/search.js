// Search: outputs of `clip-queue embed` that the service opens, through the routes that any client has (docs/http.md).
//
// search(root, ask) fills an empty element. `ask(path, options)` is fetch with the key: it rejects where there is no
// answer. What comes from the service is set as text, never as HTML; pictures come as blobs, because they need the key.

const LIMIT = 24; // hits of a page

export function search(root, ask) {
  const words = element("input", { type: "search", id: "search-words", maxLength: 2000, autocomplete: "off" });
  const file = element("input", { type: "file", id: "search-file", accept: "image/*" });
  const outputs = element("select", { id: "search-output" });
  const form = element("form", { className: "search-form" }, [
    label("Search in", outputs),
    label("for these words", words),
    element("button", { type: "submit" }, ["Search"]),
    label("or for what is like a picture", file),
    element("p", { className: "hint" }, ["You can also drop or paste a picture here."]),
  ]);
  const status = element("p", { className: "search-status" });
  status.setAttribute("role", "status");
  const hits = element("ul", { className: "search-hits" });
  const more = element("button", { type: "button", hidden: true }, ["More"]);
  root.replaceChildren(form, status, hits, more);

  let query = null; // the body of the request whose pages are shown
  let next = null; // offset of its next page
  let running = null; // AbortController of what is under way
  let urls = []; // of pictures, to be let go

  const say = (text) => (status.textContent = text);

  async function list() {
    const { searches } = await json(ask("/search"));
    const before = outputs.value;
    outputs.replaceChildren(...searches.map((each) => {
      const about = each.problem ? "cannot be read now" : `${each.rows.toLocaleString()} rows, ${each.model}`;
      return element("option", { value: each.name }, [`${each.name} (${about})`]);
    }));
    if (searches.some((each) => each.name === before)) outputs.value = before;
    form.hidden = !searches.length;
    if (!searches.length) say("No output is open for search. Start the service with CLIP_QUEUE_SEARCH=NAME=FOLDER.");
  }

  function begin(body, about) {
    running?.abort();
    running = null;
    for (const url of urls) URL.revokeObjectURL(url);
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
    more.hidden = true;
    say("Searching …");
    try {
      const found = await json(ask(`/search/${encodeURIComponent(asked.name)}`, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ ...asked.body, limit: LIMIT, offset: next }),
        signal: control.signal,
      }));
      if (asked !== query) return;
      const shown = new Set([...hits.children].map((each) => each.dataset.row));
      const fresh = found.hits.filter((hit) => !shown.has(String(hit.row))); // the output may have changed in between
      hits.append(...fresh.map((hit) => tile(hit, control.signal)));
      next = found.next_offset;
      const count = hits.children.length.toLocaleString();
      say(count === "0" ? "Nothing found." : `${count} of ${found.rows.toLocaleString()} rows, ${asked.about}.`);
    } catch (error) {
      if (asked === query) say(error.name === "AbortError" ? "" : reason(error));
    } finally {
      if (running === control) {
        running = null;
        more.hidden = next === null || asked !== query;
        if (!more.hidden && visible(more) && status.textContent.includes(" of ")) page();
      }
    }
  }

  function tile(hit) {
    const name = hit.caption || hit.image_path || `row ${hit.row}`;
    const frame = element("div", { className: "search-picture" });
    if (hit.image) picture(frame, hit.image, name);
    else frame.textContent = "no picture";
    const like = element("button", { type: "button" }, ["Like this one"]);
    like.setAttribute("aria-label", `Like this one: ${name}`);
    like.addEventListener("click", () => begin({ row: hit.row }, `like “${name}”`));
    const item = element("li", {}, [
      frame,
      element("span", { className: "search-caption", title: hit.image_path || "" }, [name]),
      element("span", { className: "search-score" }, [hit.score.toFixed(3)]),
      like,
    ]);
    item.dataset.row = String(hit.row);
    return item;
  }

  async function picture(frame, path, name) {
    try {
      const response = await patiently(() => ask(path));
      if (!response.ok) throw await problem(response);
      const blob = await response.blob();
      if (!frame.isConnected) return; // of an earlier search
      const url = URL.createObjectURL(blob);
      urls.push(url);
      const image = element("img", { src: url, alt: name, loading: "lazy", decoding: "async" });
      image.addEventListener("error", () => (frame.textContent = "the picture is broken"));
      frame.replaceChildren(image);
    } catch (error) {
      frame.textContent = reason(error);
    }
  }

  async function by(image) {
    if (!image) return;
    if (!image.type.startsWith("image/")) return say("This is no picture.");
    const value = await base64(image);
    begin({ image: { type: "base64", value } }, `like “${image.name || "your picture"}”`);
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const text = words.value.trim();
    if (text) begin({ text }, `nearest to “${text}”`);
  });
  file.addEventListener("change", () => by(file.files[0]));
  more.addEventListener("click", () => page());
  root.addEventListener("dragover", (event) => event.preventDefault());
  root.addEventListener("drop", (event) => {
    event.preventDefault();
    by([...event.dataTransfer.files][0]);
  });
  root.addEventListener("paste", (event) => {
    const pasted = [...event.clipboardData.files][0];
    if (pasted) event.preventDefault();
    by(pasted);
  });
  new IntersectionObserver((entries) => entries.some((each) => each.isIntersecting) && page()).observe(more);

  const refresh = () => list().catch((error) => say(reason(error)));
  refresh();
  return { refresh };
}

function element(tag, properties = {}, children = []) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function label(text, control) {
  return element("label", { htmlFor: control.id }, [`${text} `, control]);
}

function visible(it) {
  const { top, bottom } = it.getBoundingClientRect();
  return bottom > 0 && top < innerHeight;
}

async function json(asked) {
  const response = await asked;
  if (!response.ok) throw await problem(response);
  return response.json();
}

// An error with what the service says.
async function problem(response) {
  const body = await response.json().catch(() => ({}));
  return new Error(body.message || body.detail?.[0]?.msg || `The service answered ${response.status}.`);
}

function reason(error) {
  return error instanceof TypeError ? "The service does not answer." : error.message;
}

// An answer; where the service is full for a moment it is asked again.
async function patiently(asked) {
  for (let turn = 1; ; turn++) {
    const response = await asked();
    if (response.status !== 429 || turn === 5) return response;
    await new Promise((go) => setTimeout(go, 300 * turn));
  }
}

function base64(blob) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => failed(new Error("The picture cannot be read."));
    reader.readAsDataURL(blob);
  });
}

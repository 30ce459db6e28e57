// Elements. Whatever is shown is set as text: nothing here makes HTML of a string.

export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "on") for (const [event, act] of Object.entries(value)) made.addEventListener(event, act);
    else if (name === "class") made.className = value;
    else if (name.includes("-") || name === "role" || name === "for" || name === "scope") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export function table(caption, heads, rows) {
  const head = el("thead", {}, el("tr", {}, heads.map((text) => el("th", { scope: "col" }, text))));
  const body = el("tbody", {}, rows.map(([first, ...others]) =>
    el("tr", {}, el("th", { scope: "row" }, first), others.map((cell) => el("td", {}, cell)))));
  // It may be wider than a phone: then it is scrolled, with the keyboard too.
  const scrolled = { class: "scroll", tabIndex: 0, role: "region", "aria-label": caption };
  return el("div", scrolled, el("table", {}, el("caption", {}, caption), head, body));
}

export const count = (number) => Number(number).toLocaleString("en");

export const bytes = (number) =>
  number < 2 ** 20 ? `${(number / 2 ** 10).toFixed(0)} KiB`
  : number < 2 ** 30 ? `${(number / 2 ** 20).toFixed(0)} MiB` : `${(number / 2 ** 30).toFixed(1)} GiB`;

export const span = (seconds) =>
  seconds < 1 ? `${(seconds * 1000).toFixed(seconds < 0.01 ? 1 : 0)} ms`
  : seconds < 60 ? `${seconds.toFixed(1)} s`
  : seconds < 3600 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;

// What Server-Timing and the workers measure of a request.
export const STAGES = { queue: "in the queue", prepare: "reading", wait: "until the model is free", forward: "in the model" };

// Lists of at most `size` each.
export function parts(list, size) {
  const out = [];
  for (let start = 0; start < list.length; start += size) out.push(list.slice(start, start + size));
  return out;
}

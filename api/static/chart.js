// Lines over the last ten minutes, or as many as the service has measured, in SVG.

import { el, span } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT] = [600, 120];
const [LEAST, MOST] = [60, 600]; // seconds

const svg = (tag, attributes, ...children) => {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
};

// A figure. update(now, lines, write): lines is {name: [[time, value or null], ...]}, in at most five colours.
export function chart(title, most = 0) {
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
  const top = el("span", { class: "top" });
  const begin = el("span");
  const axis = el("div", { class: "axis", "aria-hidden": "true" }, begin, el("span", {}, "now"));
  const legend = el("ul", { class: "legend" });
  const figure = el("figure", { class: "chart" }, el("figcaption", {}, title), top, picture, axis, legend);
  const update = (now, lines, write) => {
    const points = Object.values(lines);
    const seconds = Math.min(MOST, Math.max(LEAST, ...points.map(([first]) => now - (first?.[0] ?? now))));
    begin.textContent = `${span(seconds)} ago`;
    const highest = Math.max(most, ...points.flat().map(([, value]) => value ?? 0)) || 1;
    top.textContent = write(highest);
    picture.replaceChildren(...points.map((list, i) => svg("path", { class: `line line-${i % 5}`, d: path(list, now, seconds, highest) })));
    const said = Object.entries(lines).map(([name, list]) => `${name} ${list.at(-1)?.[1] == null ? "-" : write(list.at(-1)[1])}`);
    legend.replaceChildren(...said.map((text, i) => el("li", { class: `key-${i % 5}` }, text)));
    picture.setAttribute("aria-label", `${title}, the last ${begin.textContent.replace(" ago", "")}. Now: ${said.join(", ")}`);
  };
  return { figure, update };
}

function path(points, now, seconds, highest) {
  let pen = "M";
  let out = "";
  for (const [at, value] of points) {
    if (value === null) {
      pen = "M"; // nothing was measured: a gap
      continue;
    }
    const x = WIDTH * (1 - (now - at) / seconds);
    const y = (HEIGHT * (1 - value / highest)).toFixed(1);
    out += `${pen}${x.toFixed(1)} ${y}${pen === "M" ? "h0" : ""}`; // a lone value is a dot
    pen = "L";
  }
  return out;
}

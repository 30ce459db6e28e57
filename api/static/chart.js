// Lines over the last ten minutes, in SVG.

import { el } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, SECONDS] = [600, 120, 600];

const svg = (tag, attributes, ...children) => {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
};

// A figure with a line for each of `names`. update(now, points, write): points[i] is a list of [time, value or null].
export function chart(title, names, most = 0) {
  const lines = names.map((_, i) => svg("path", { class: `line line-${i}` }));
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" }, ...lines);
  const top = el("span", { class: "top" });
  const legend = el("ul", { class: "legend" });
  const figure = el("figure", { class: "chart" }, el("figcaption", {}, title), top, picture, legend);
  const update = (now, points, write) => {
    const all = points.flat().map(([, value]) => value ?? 0);
    const highest = Math.max(most, ...all) || 1;
    top.textContent = write(highest);
    points.forEach((list, i) => lines[i].setAttribute("d", path(list, now, highest)));
    const said = names.map((name, i) => {
      const last = points[i].at(-1)?.[1] ?? null;
      return [name, last === null ? "-" : write(last)];
    });
    legend.replaceChildren(...said.map(([name, value], i) => el("li", { class: `key-${i}` }, `${name} ${value}`)));
    picture.setAttribute("aria-label", `${title}, ten minutes. Now: ${said.map((each) => each.join(" ")).join(", ")}`);
  };
  return { figure, update };
}

function path(points, now, highest) {
  let pen = "M";
  let out = "";
  for (const [at, value] of points) {
    if (value === null) {
      pen = "M"; // nothing was measured: a gap
      continue;
    }
    const x = WIDTH * (1 - (now - at) / SECONDS);
    out += `${pen}${x.toFixed(1)} ${(HEIGHT * (1 - value / highest)).toFixed(1)}`;
    pen = "L";
  }
  return out;
}

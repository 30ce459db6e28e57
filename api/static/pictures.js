// Pictures from disk, clipboard, camera: taken in, measured, shown small, and scaled down before they are sent.

import { Failure } from "./api.js";
import { el } from "./dom.js";

const FACTOR = 4; // the short side of a picture that was made smaller is at least this many times the model's
const THUMB = 240; // pixels of the longer side
const RAW = { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" };

// What a file is: {name, file, width, height, thumb, error}. Sizes are 0 where this browser cannot read it: the service
// may. It is measured before anything is decoded, so that a huge picture costs nothing.
export async function take(file, limits, preview = true) {
  const picture = { name: file.name || "picture", file, width: 0, height: 0, thumb: null, error: "" };
  if (file.size > limits.max_image_bytes) {
    picture.error = `This file has ${mega(file.size)} million bytes; the service takes ${mega(limits.max_image_bytes)}.`;
    return picture;
  }
  if (file.type === "image/svg+xml") return picture; // drawn by no browser here: the service says what it takes
  Object.assign(picture, await measure(file));
  if (picture.width * picture.height > limits.max_image_pixels) {
    const most = mega(limits.max_image_pixels);
    picture.error = `This picture has ${mega(picture.width * picture.height)} million pixels; the service takes ${most}.`;
  } else if (preview && picture.width) {
    picture.thumb = await draw(file, picture, THUMB / Math.max(picture.width, picture.height)).catch(() => null);
  }
  return picture;
}

const mega = (number) => (number / 1e6).toFixed(1);

function measure(file) {
  const url = URL.createObjectURL(file);
  const image = new Image();
  return new Promise((done) => {
    image.onload = () => done({ width: image.naturalWidth, height: image.naturalHeight });
    image.onerror = () => done({});
    image.src = url;
  }).finally(() => URL.revokeObjectURL(url));
}

// A canvas with the picture, halved as often as it stays at least `scale` times as large. Browsers that shrink a picture
// in one step leave pixels out, and fine lines become others.
async function draw(file, { width, height }, scale) {
  const halves = Math.max(0, Math.floor(-Math.log2(scale)));
  let image = await createImageBitmap(file, RAW);
  let size = [width, height];
  for (let i = 0; i < Math.max(1, halves); i++) {
    if (halves) size = size.map((side) => Math.ceil(side / 2));
    const canvas = el("canvas", { width: size[0], height: size[1] });
    const context = canvas.getContext("2d", { willReadFrequently: true }); // in memory, not on a card
    context.imageSmoothingQuality = "high";
    context.drawImage(image, 0, 0, ...size);
    image.close?.();
    image = canvas;
  }
  return image;
}

// The bytes to send for a model that sees `side` pixels: smaller, where `scale` is set and that helps.
export async function bytesFor({ file, width, height }, side, scale) {
  const times = (FACTOR * side) / Math.min(width, height);
  if (!scale || !width || !side || times > 0.5) return file;
  try {
    const canvas = await draw(file, { width, height }, times);
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    for (let i = 3; i < data.length; i += 4) if (data[i] < 255) return file; // what lies below would be lost
    const type = file.type === "image/jpeg" ? "image/jpeg" : "image/png";
    const small = await new Promise((done) => canvas.toBlob(done, type, 0.95));
    return small && small.size < file.size ? small : file;
  } catch {
    return file;
  }
}

export function base64(blob) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => failed(new Failure(400, "unreadable", "This file cannot be read."));
    reader.readAsDataURL(blob);
  });
}

// What the service takes as an image.
export const inline = async (blob) => ({ type: "base64", value: await base64(blob) });

const SMALLER = "They are halved until they are four to eight times as large as what the model sees. The vector changes a little: " +
  "with emoji-mini its cosine with that of the whole picture is 0.999 or more (of pure noise: 0.99).";

// A place to drop, paste and pick files, and to use the camera: each calls taken(files). It listens while it is seen.
// `smaller` is the switch for making pictures smaller, in `option`; switched(): it was used.
export function intake(text, taken, signal, switched = () => {}) {
  const smaller = el("input", { type: "checkbox", checked: true, on: { change: switched } });
  const file = el("input", { type: "file", accept: "image/*", multiple: true, class: "file" });
  file.addEventListener("change", () => {
    taken([...file.files]);
    file.value = "";
  });
  const place = el("div", { class: "drop" }, el("label", { class: "pick" }, el("span", {}, text), file));
  const option = el("div", {}, el("label", { class: "tick" }, smaller, "Make large pictures smaller"), el("p", { class: "hint" }, SMALLER));
  if (navigator.mediaDevices?.getUserMedia) {
    place.append(el("button", { type: "button", on: { click: () => camera(taken) } }, "Use the camera"));
  }
  const seen = () => place.offsetParent !== null;
  const files = (event, data) => {
    const found = [...(data?.files ?? [])];
    if (!seen() || !found.length) return;
    if (data.types.includes("text/plain") && event.target.closest?.("textarea, input")) return; // text with its picture
    event.preventDefault();
    taken(found);
  };
  const mark = (on) => place.classList.toggle("over", on);
  document.addEventListener("paste", (event) => files(event, event.clipboardData), { signal });
  document.addEventListener("drop", (event) => (mark(false), files(event, event.dataTransfer)), { signal });
  document.addEventListener("dragover", () => mark(true), { signal });
  document.addEventListener("dragleave", (event) => event.relatedTarget || mark(false), { signal });
  return { place, option, smaller };
}

async function camera(taken) {
  const video = el("video", { autoplay: true, muted: true, playsInline: true, "aria-label": "What the camera sees" });
  const note = el("p", { role: "status" });
  const shoot = el("button", { type: "button", disabled: true }, "Take the picture");
  const close = el("button", { type: "button" }, "Close");
  const dialog = el("dialog", { "aria-label": "Camera" }, video, note, shoot, close);
  let stream;
  document.body.append(dialog);
  dialog.addEventListener("close", () => {
    stream?.getTracks().forEach((track) => track.stop());
    dialog.remove();
  });
  close.addEventListener("click", () => dialog.close());
  shoot.addEventListener("click", () => {
    const canvas = el("canvas", { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob((blob) => blob && taken([new File([blob], "camera.jpg", { type: blob.type })]), "image/jpeg", 0.95);
    dialog.close();
  });
  video.addEventListener("loadeddata", () => (shoot.disabled = false));
  dialog.showModal();
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: true });
    if (!dialog.open) stream.getTracks().forEach((track) => track.stop());
    video.srcObject = stream;
  } catch {
    note.textContent = "The camera cannot be used: there is none, or the browser does not allow it.";
  }
}

// Requests to the service, with the key in a header. The service is where this file comes from.

const BASE = new URL("../", import.meta.url);
const KEPT = "clip-queue-key"; // the name in sessionStorage

export const address = (path) => new URL(path.replace(/^\//, ""), BASE);

// What went wrong. `status` 0: no answer.
export class Failure extends Error {
  constructor(status, code, message, retryAfter = 0) {
    super(message);
    Object.assign(this, { status, code, retryAfter });
  }

  // Whether the same request may succeed later.
  get passes() {
    return [0, 429, 502, 503, 504].includes(this.status);
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEPT) || "",
  set: (value) => (value ? sessionStorage.setItem(KEPT, value) : sessionStorage.removeItem(KEPT)),
};

let refused = () => {};
export const onRefused = (act) => (refused = act);

// fetch with the key: it rejects where there is no answer.
export async function ask(path, options = {}) {
  const headers = new Headers(options.headers);
  const used = key.get();
  if (used) headers.set("Authorization", `Bearer ${String.fromCharCode(...new TextEncoder().encode(used))}`);
  const response = await fetch(address(path), { ...options, headers, credentials: "omit", cache: "no-store" });
  if (response.status === 401 && used === key.get()) refused();
  return response;
}

// A response below 400. Throws Failure; an abort as it is.
export async function call(path, options) {
  let response;
  try {
    response = await ask(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(0, "away", "The service does not answer.");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  const message = body.message || body.detail?.[0]?.msg || `The service answered ${response.status}.`;
  throw new Failure(response.status, body.code || "http", message, Number(response.headers.get("Retry-After")) || 0);
}

async function body(response) {
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(0, "away", "The service broke off its answer.");
  }
}

export const get = async (path, options) => body(await call(path, options));

// {body, headers, seconds}
export async function post(path, content, options = {}) {
  const began = performance.now();
  const headers = { "Content-Type": "application/json", ...options.headers };
  const response = await call(path, { ...options, method: "POST", body: JSON.stringify(content), headers });
  const answer = await body(response);
  return { body: answer, headers: response.headers, seconds: (performance.now() - began) / 1000 };
}

// The documents of a stream of Server-Sent Events, until it ends. EventSource cannot send the key.
export async function* events(path, signal) {
  const response = await call(path, { headers: { Accept: "text/event-stream" }, signal });
  if (response.status === 204) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const whole = (held + value).split("\n\n");
    held = whole.pop();
    for (const event of whole) {
      const data = event.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6));
      if (data.length) yield JSON.parse(data.join("\n"));
    }
  }
}

// The service's GET /status, asked for again and again while the page is seen, and the last ten minutes of it.

import { Failure, get } from "./api.js";

const INTERVAL = 2000; // milliseconds
const TIMEOUT = 8000;
const KEPT = 600; // seconds
const APART = 4; // seconds between two samples at least: other processes on the same port measure at other times

export class Status {
  latest = null; // the newest document; null: none yet, or the service is away
  failure = null; // why the last look failed
  recent = []; // samples, oldest first
  #told = new Set();
  #timer = 0;
  #control = new AbortController(); // of the look under way

  // act(status) is called now and after each look, until the signal.
  subscribe(act, signal) {
    this.#told.add(act);
    signal?.addEventListener("abort", () => this.#told.delete(act));
    act(this);
  }

  start() {
    document.addEventListener("visibilitychange", () => document.hidden || this.look());
    this.look();
  }

  // A look that is under way is given up for a new one: it may have been made with another key.
  async look() {
    clearTimeout(this.#timer);
    this.#control.abort();
    const { signal } = (this.#control = new AbortController());
    let [found, failure] = [null, null];
    try {
      const since = this.recent.length ? this.recent.at(-1).at + APART : 0;
      found = await get(`status?since=${since}`, { signal: AbortSignal.any([signal, AbortSignal.timeout(TIMEOUT)]) });
    } catch (error) {
      failure = error instanceof Failure ? error : new Failure(0, "away", "The service does not answer.");
    }
    if (signal.aborted) return;
    if (found) this.recent = [...this.recent, ...found.recent].filter((sample) => sample.at > found.now - KEPT);
    [this.latest, this.failure] = [found, failure];
    for (const act of this.#told) act(this);
    if (!document.hidden && failure?.status !== 401) this.#timer = setTimeout(() => document.hidden || this.look(), INTERVAL);
  }

  model(name) {
    const models = this.latest?.models ?? [];
    return models.find((model) => (name ? model.name === name : model.default)) ?? models[0];
  }
}

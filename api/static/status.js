// The service's GET /status, asked for again and again while the page is seen, and the last ten minutes of it.

import { Failure, get } from "./api.js";

const INTERVAL = 2000; // milliseconds
const TIMEOUT = 8000;
const KEPT = 600; // seconds

export class Status {
  latest = null; // the newest document; null: none yet, or the service is away
  failure = null; // why the last look failed
  recent = []; // samples, oldest first
  #told = new Set();
  #timer = 0;
  #looking = false;

  // act(status) is called now and after each look. Returns what ends that.
  subscribe(act, signal) {
    this.#told.add(act);
    const end = () => this.#told.delete(act);
    signal?.addEventListener("abort", end);
    act(this);
    return end;
  }

  start() {
    document.addEventListener("visibilitychange", () => document.hidden || this.look());
    this.look();
  }

  async look() {
    if (this.#looking) return;
    this.#looking = true;
    clearTimeout(this.#timer);
    try {
      const since = this.recent.at(-1)?.at ?? 0;
      const found = await get(`status?since=${since}`, { signal: AbortSignal.timeout(TIMEOUT) });
      this.recent = [...this.recent, ...found.recent].filter((sample) => sample.at > found.now - KEPT);
      [this.latest, this.failure] = [found, null];
    } catch (error) {
      this.latest = null;
      this.failure = error instanceof Failure ? error : new Failure(0, "away", "The service does not answer.");
    }
    this.#looking = false;
    for (const act of this.#told) act(this);
    if (!document.hidden && this.failure?.status !== 401) this.#timer = setTimeout(() => this.look(), INTERVAL);
  }

  model(name) {
    const models = this.latest?.models ?? [];
    return models.find((model) => (name ? model.name === name : model.default)) ?? models[0];
  }
}

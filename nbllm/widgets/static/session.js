// @ts-check
/** One model's connection with the kernel, shared by all views of the model on this page. */
import { Requests } from "./requests.js";
import { RunStore } from "./store.js";

/**
 * @typedef {{send: (content: any, callbacks?: any, buffers?: any) => void, on: (name: string, callback: any) => void,
 *   off: (name: string, callback: any) => void}} Model
 * @typedef {{onChange: () => void, onProblem: (problem: unknown) => void}} SessionView
 */

const PATIENT = 2000; // milliseconds after which a person is told that the kernel has not answered
const ASK_AGAIN = 5000; // after which hello is said again, if there is a reason to: it may have been lost

/** @type {WeakMap<Model, Session>} */
const sessions = new WeakMap();

/** @param {Model} model @returns {Session} the same for every view of a model */
export function sessionOf(model) {
  const session = sessions.get(model) ?? new Session(model);
  sessions.set(model, session);
  return session;
}

export class Session {
  /** @param {Model} model */
  constructor(model) {
    this.model = model;
    this.viewer = Array.from(crypto.getRandomValues(new Uint32Array(3)), (n) => n.toString(36)).join("");
    this.store = new RunStore();
    this.requests = new Requests((message) => this.send(message), () => this.#changed(), () => this.store.cards);
    /** @type {Set<SessionView>} */
    this.views = new Set();
    /** What the newest view looked like: the next one begins with it. @type {any} */
    this.lastLook = null;
    /** When hello was said that nobody has answered yet. @type {number | null} */
    this.askedAt = null;
    this.timer = 0;
    this.onMessage = (/** @type {any} */ content, /** @type {any} */ buffers) => {
      try {
        this.#receive(content, buffers);
      } catch (error) {
        this.problem(error);
      }
    };
  }

  /** @param {SessionView} view */
  open(view) {
    this.views.add(view);
    if (this.views.size > 1) return;
    this.model.on("msg:custom", this.onMessage);
    this.hello();
  }

  /** @param {SessionView} view */
  close(view) {
    this.views.delete(view);
    if (this.views.size) return;
    this.model.off("msg:custom", this.onMessage);
    clearTimeout(this.timer);
    this.askedAt = null;
    try {
      this.send({ type: "bye" });
    } catch {
      // The kernel is gone, and with it who would have heard.
    }
  }

  /** Ask for everything, unless that has just been asked. */
  hello() {
    if (this.askedAt !== null && Date.now() - this.askedAt < ASK_AGAIN) return;
    this.askedAt = Date.now();
    clearTimeout(this.timer);
    this.timer = window.setTimeout(() => this.#changed(), PATIENT);
    this.send({ type: "hello" });
  }

  /** Whether the kernel should have answered by now. */
  get isUnanswered() {
    return this.askedAt !== null && Date.now() - this.askedAt >= PATIENT;
  }

  /** @param {any} message */
  send(message) {
    this.model.send({ ...message, viewer: this.viewer }, undefined, []);
  }

  /** @param {unknown} problem */
  problem(problem) {
    for (const view of this.views) view.onProblem(problem);
  }

  #changed() {
    for (const view of this.views) view.onChange();
  }

  /** @param {any} content @param {DataView[]} buffers */
  #receive(content, buffers) {
    if (!content || (content.to != null && content.to !== this.viewer)) return;
    switch (content.type) {
      case "snapshot":
        this.askedAt = null;
        clearTimeout(this.timer);
        this.store.snapshot(content);
        this.requests.settle();
        break;
      case "update":
        if (!this.store.update(content) && this.store.known) this.hello();
        this.requests.settle();
        break;
      case "points":
        this.store.take(content, buffers);
        break;
      case "sent":
      case "done":
      case "refused":
        if (!this.requests.hear(content) && content.type === "refused") this.problem(content.reason);
        break;
      case "problem":
        this.problem(content.text);
        break;
      default:
        return; // of a newer kernel
    }
    this.#changed();
  }
}

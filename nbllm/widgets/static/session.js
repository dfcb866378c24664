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
const SILENCE = 12_000; // milliseconds without a word, which otherwise comes every three seconds: the kernel may be gone
const ASK_AGAIN = 5000; // after which hello is said again: it may have been lost

export class Session {
  constructor() {
    /** The view's handle through which messages come; anywidget takes it away with the view. @type {Model | null} */
    this.model = null;
    this.viewer = Array.from(crypto.getRandomValues(new Uint32Array(3)), (n) => n.toString(36)).join("");
    this.store = new RunStore();
    this.requests = new Requests((message) => this.send(message), () => this.#changed(), () => this.store.cards);
    /** With its handle of the model each. @type {Map<SessionView, Model>} */
    this.views = new Map();
    /** What the newest view looked like: the next one begins with it. @type {any} */
    this.lastLook = null;
    /** Since when hello has not been answered. @type {number | null} */
    this.askedAt = null;
    /** When it was said last. */
    this.saidAt = 0;
    this.timer = 0;
    /** When the kernel was heard last, and the timer that looks whether it is heard. */
    this.heardAt = Date.now();
    this.watch = 0;
    this.wasSilent = false;
    this.onMessage = (/** @type {any} */ content, /** @type {any} */ buffers) => {
      try {
        this.heardAt = Date.now();
        this.#noteSilence();
        this.#receive(content, buffers);
      } catch (error) {
        this.problem(error);
      }
    };
  }

  /** @param {SessionView} view @param {Model} model */
  open(view, model) {
    this.views.set(view, model);
    if (this.model) return;
    this.#listen(model);
    this.heardAt = Date.now();
    this.watch = window.setInterval(() => this.#noteSilence(), 1000);
    this.hello();
  }

  /** @param {SessionView} view */
  close(view) {
    const model = this.views.get(view);
    this.views.delete(view);
    if (!model || model !== this.model) return;
    const [another] = this.views.values();
    if (!another) {
      clearTimeout(this.timer);
      clearInterval(this.watch);
      this.askedAt = null;
      try {
        this.send({ type: "bye" });
      } catch {
        // The kernel is gone, and with it who would have heard.
      }
    }
    model.off("msg:custom", this.onMessage);
    this.#listen(another ?? null);
  }

  /** @param {Model | null} model */
  #listen(model) {
    this.model = model;
    model?.on("msg:custom", this.onMessage);
  }

  /** Ask for everything, unless that has just been asked; again and again until there is an answer. */
  hello() {
    if (this.askedAt !== null && Date.now() - this.saidAt < ASK_AGAIN) return;
    this.saidAt = Date.now();
    this.askedAt ??= this.saidAt;
    clearTimeout(this.timer);
    this.timer = window.setTimeout(() => {
      this.#changed();
      // The first word of a panel that a running cell has shown may wait for the end of that cell; later ones do not.
      this.timer = window.setTimeout(() => this.hello(), ASK_AGAIN - PATIENT + 50);
    }, PATIENT);
    this.send({ type: "hello" });
  }

  /** Whether the kernel should have answered by now. */
  get isUnanswered() {
    return this.askedAt !== null && Date.now() - this.askedAt >= PATIENT;
  }

  /** Whether the kernel, which was there once, has not been heard for long. */
  get isSilent() {
    return this.store.known && Date.now() - this.heardAt >= SILENCE;
  }

  /** Tell the views when the kernel falls silent or is heard again. */
  #noteSilence() {
    if (this.isSilent === this.wasSilent) return;
    this.wasSilent = this.isSilent;
    this.#changed();
  }

  /** @param {any} message */
  send(message) {
    this.model?.send({ ...message, viewer: this.viewer }, undefined, []);
  }

  /** @param {unknown} problem */
  problem(problem) {
    for (const view of this.views.keys()) view.onProblem(problem);
  }

  #changed() {
    for (const view of this.views.keys()) view.onChange();
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
        return; // "alive", or of a newer kernel
    }
    this.#changed();
  }
}

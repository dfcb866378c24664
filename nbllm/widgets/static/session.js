// @ts-check
/** One model's connection with the kernel, shared by all views of the model on this page. */
import { Connection } from "./connection.js";
import { Requests } from "./requests.js";
import { RunStore } from "./store.js";

/**
 * @typedef {import("./connection.js").Model} Model
 * @typedef {{onChange: () => void, onProblem: (problem: unknown) => void}} SessionView
 */

export class Session {
  constructor() {
    this.connection = new Connection({
      onMessage: (content, buffers) => this.#receive(content, buffers),
      onChange: () => this.#changed(),
      onProblem: (problem) => this.problem(problem),
    });
    this.store = new RunStore();
    this.requests = new Requests((message) => this.send(message), () => this.#changed(), () => this.store.cards);
    /** With its handle of the model each: anywidget takes a handle away with its view. @type {Map<SessionView, Model>} */
    this.views = new Map();
    /** What the newest view looked like: the next one begins with it. @type {any} */
    this.lastLook = null;
  }

  /** @param {SessionView} view @param {Model} model */
  open(view, model) {
    this.views.set(view, model);
    if (!this.connection.model) this.connection.open(model);
  }

  /** @param {SessionView} view */
  close(view) {
    const model = this.views.get(view);
    this.views.delete(view);
    if (!model || model !== this.connection.model) return;
    const [another] = this.views.values();
    if (another) this.connection.listen(another);
    else this.connection.close();
  }

  /** @param {any} message */
  send(message) {
    this.connection.send(message);
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
    switch (content.type) {
      case "snapshot":
        this.connection.answered();
        this.store.snapshot(content);
        this.requests.settle();
        break;
      case "update":
        if (!this.store.update(content) && this.store.known) this.connection.hello();
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
        return; // "alive", or of a newer version
    }
    this.#changed();
  }
}

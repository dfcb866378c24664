// @ts-check
/** A front end's connection with its kernel: hello until it is answered, and whether the kernel is still there. */
import { element } from "./common.js";
import { clock, setShown, setText } from "./dom.js";

/**
 * @typedef {{send: (content: any, callbacks?: any, buffers?: any) => void, on: (name: string, callback: any) => void,
 *   off: (name: string, callback: any) => void}} Model
 * @typedef {{onMessage: (content: any, buffers: DataView[]) => void, onChange: () => void,
 *   onProblem: (problem: unknown) => void}} ConnectionOwner
 *   onMessage: given the messages for this viewer; onChange: the connection was lost or found, or hello is unanswered
 */

const UNANSWERED = 2000; // milliseconds after which the user is told that the kernel has not answered
const ASK_AGAIN = 5000; // after which hello is sent again: it may have been lost
const SILENCE = 12_000; // without a message, while one should come every three seconds: the kernel may be gone
const WATCH = 1000; // between looks at the time since the last message

export class Connection {
  /** @param {ConnectionOwner} owner */
  constructor(owner) {
    this.owner = owner;
    /** The handle through which messages come. @type {Model | null} */
    this.model = null;
    this.viewer = Array.from(crypto.getRandomValues(new Uint32Array(3)), (n) => n.toString(36)).join("");
    /** Whether hello was answered once. */
    this.known = false;
    /** When the kernel was heard last. */
    this.heardAt = Date.now();
    /** Whether a message could not be sent: the widget's comm is closed. */
    this.isClosed = false;
    /** Since when hello has not been answered. @type {number | null} */
    this.askedAt = null;
    this.sentAt = 0;
    this.wasLost = false;
    this.timer = this.watch = this.probe = 0;
    this.onMessage = (/** @type {any} */ content, /** @type {any} */ buffers) => {
      this.heardAt = Date.now(); // what is for another viewer comes from the same kernel
      this.isClosed = false;
      this.#noteLoss();
      if (!content || (content.to != null && content.to !== this.viewer)) return;
      try {
        this.owner.onMessage(content, buffers ?? []);
      } catch (error) {
        this.owner.onProblem(error);
      }
    };
    // JupyterLab says so when a kernel restarts or ends; a moment later its comms are closed.
    this.onLiveness = () => {
      clearTimeout(this.probe);
      this.probe = window.setTimeout(() => this.#say({ type: "hello" }), WATCH);
    };
  }

  /** Listen, say hello, and watch. @param {Model} model */
  open(model) {
    this.listen(model);
    this.heardAt = Date.now();
    this.watch = window.setInterval(() => this.#noteLoss(), WATCH);
    this.hello();
  }

  /** Listen through another handle of the same model, or through none. @param {Model | null} model */
  listen(model) {
    this.model?.off("msg:custom", this.onMessage);
    this.model?.off("comm_live_update", this.onLiveness);
    this.model = model;
    model?.on("msg:custom", this.onMessage);
    model?.on("comm_live_update", this.onLiveness);
  }

  close() {
    for (const timer of [this.timer, this.probe]) clearTimeout(timer);
    clearInterval(this.watch);
    this.askedAt = null;
    this.#say({ type: "bye" });
    this.listen(null);
  }

  /** Ask for everything, unless that has just been asked; again and again until there is an answer. */
  hello() {
    if (this.askedAt !== null && Date.now() - this.sentAt < ASK_AGAIN) return;
    this.sentAt = Date.now();
    this.askedAt ??= this.sentAt;
    clearTimeout(this.timer);
    this.timer = window.setTimeout(() => {
      this.owner.onChange();
      // The first message of a panel that a running cell has shown may wait for the end of that cell; later ones do not.
      this.timer = window.setTimeout(() => this.hello(), ASK_AGAIN - UNANSWERED + 50);
    }, UNANSWERED);
    this.#say({ type: "hello" });
  }

  /** Hello is answered. */
  answered() {
    this.known = true;
    this.askedAt = null;
    clearTimeout(this.timer);
  }

  /** Whether the kernel should have answered hello by now. */
  get isUnanswered() {
    return this.askedAt !== null && Date.now() - this.askedAt >= UNANSWERED;
  }

  /** Whether the kernel can no longer be reached, or has long been silent since it answered. */
  get isLost() {
    return this.isClosed || (this.known && Date.now() - this.heardAt >= SILENCE);
  }

  /** @param {any} message @throws {Error} the widget's comm is closed */
  send(message) {
    try {
      this.model?.send({ ...message, viewer: this.viewer }, undefined, []);
    } catch (error) {
      this.isClosed = true;
      this.#noteLoss();
      throw error;
    }
  }

  /** Send what nobody waits for. @param {any} message */
  #say(message) {
    try {
      this.send(message);
    } catch {
      // The kernel is gone, as `isLost` says.
    }
  }

  /** Tell the owner when the kernel is lost or heard again. */
  #noteLoss() {
    if (this.isLost === this.wasLost) return;
    this.wasLost = this.isLost;
    this.owner.onChange();
  }
}

/** A note that the kernel is lost, and the part of a panel that is grey and without function as long as it is. */
export class LossNote {
  /** @param {HTMLElement} root of the panel */
  constructor(root) {
    this.root = root;
    this.node = element("div", { class: "nbllm-loss", role: "status", hidden: true });
  }

  /**
   * @param {Connection} connection @param {HTMLElement[]} parts that need the kernel
   * @param {() => string} advice what to do
   */
  show({ isLost, heardAt }, parts, advice) {
    for (const part of parts) part.inert = isLost;
    this.root.classList.toggle("nbllm-lost", isLost);
    setShown(this.node, isLost);
    if (isLost) {
      const since = clock(heardAt / 1000);
      setText(this.node, `The kernel has not been heard since ${since}; the panel shows how things stood then. ${advice()}`);
    }
  }
}

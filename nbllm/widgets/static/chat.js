// @ts-check
/** The chat panel: a conversation with a model. The entry module of nbllm.widgets.chat. */
import { ChatControls } from "./chat_controls.js";
import { ChatLog } from "./chat_log.js";
import { TokenTip } from "./chat_tokens.js";
import { element, errorBox, formatCount, suppressShortcuts } from "./common.js";
import { Connection, LossNote } from "./connection.js";
import { icon, setAttribute, setShown, setText } from "./dom.js";

const PATIENCE = 1500; // milliseconds after which the user is told that the kernel has not answered
const BUSY = "The kernel has not answered yet: it is busy with a cell, or was restarted.";
const LOST = "If the kernel has ended, run the cell again: it begins a new conversation. The text of this one can still be copied.";

class ChatView {
  /** @param {any} model @param {HTMLElement} el */
  constructor(model, el) {
    this.seq = -1;
    /** @type {import("./chat_log.js").ChatTurn[]} */
    this.turns = [];
    this.request = 0;
    /** The request whose acceptance clears the composer. */
    this.asked = 0;
    this.waiting = 0;
    this.sure = 0;
    this.errors = errorBox();
    this.#build(el);
    this.connection = new Connection({
      onMessage: (content) => this.#take(content),
      onChange: () => this.#showConnection(),
      onProblem: (problem) => this.errors.show(problem),
    });
    this.connection.open(model);
  }

  /** @param {HTMLElement} el */
  #build(el) {
    const button = (/** @type {string} */ text, /** @type {() => void} */ press, /** @type {Record<string, any>} */ props = {}) =>
      element("button", { type: "button", class: "chat-button", text, onclick: this.guarded(press), ...props });
    this.spoken = element("div", { class: "chat-unseen", role: "status", "aria-live": "polite" });
    this.root = element("div", {
      class: "nbllm nbllm-panel nbllm-chat", role: "region", "aria-label": "Chat", onfocusin: suppressShortcuts,
      onkeydown: (/** @type {any} */ event) => event.stopPropagation(), // what is pressed here is not for the notebook
    });
    this.tip = new TokenTip(this.root, (text) => setText(this.spoken, text));
    this.log = new ChatLog(this.tip, {
      edit: (turn, text) => this.#ask("edit", { turn, text }),
      regenerate: () => this.#ask("regenerate", {}),
      guarded: (listener) => this.guarded(listener),
    });
    this.controls = new ChatControls(this.guarded(() => this.#ask("controls", {})));
    this.name = element("bdi", { class: "chat-name", text: "Chat" });
    this.about = element("span", { class: "chat-about muted" });
    this.clear = button("New conversation", () => this.#clear(), { class: "chat-small" });
    this.exports = element("span", { class: "chat-exports" }, element("span", { class: "muted chat-hint", text: "Export" }),
      button("JSON", () => this.#send("export", { format: "json" }), { class: "chat-small", "aria-label": "Export as JSON", title: "Export: messages, and every token's probability" }),
      button("Markdown", () => this.#send("export", { format: "md" }), { class: "chat-small", "aria-label": "Export as Markdown", title: "Export: the messages" }),
      this.clear);
    const head = element("div", { class: "chat-head" }, this.name, this.about, this.exports);
    this.field = element("textarea", {
      rows: 1, class: "chat-field", placeholder: "Ask something", "aria-label": "Question", dir: "auto",
      oninput: () => this.#grow(), onkeydown: this.guarded((event) => this.#onKey(event)),
    });
    this.send = button("Send", () => this.#submit(), { class: "chat-button primary" });
    this.stop = element("button", { type: "button", class: "chat-button danger", hidden: true, onclick: this.guarded(() => this.#stop()) },
      icon("stop"), element("span", { text: "Stop" }));
    this.status = element("span", { class: "chat-status muted" });
    const tint = element("input", { type: "checkbox", onchange: () => this.log.node.classList.toggle("chat-tinted", tint.checked) });
    this.parts = element("pre", { class: "chat-prompt", tabindex: 0, "aria-label": "The prompt", dir: "auto" });
    this.count = element("div", { class: "muted chat-hint" });
    this.prompt = element("details", { class: "chat-details", ontoggle: this.guarded(() => this.#askPrompt()) },
      element("summary", { text: "Prompt as the model reads it" }), this.count, this.parts);
    this.root.append(
      head, this.controls.node, this.log.node,
      this.errors.node, element("div", { class: "chat-composer" }, this.field, this.send, this.stop),
      element("div", { class: "chat-row chat-below" }, this.status,
        element("label", { class: "chat-tint muted", title: "The stronger the tint, the less probable the token was" }, tint, "Tint by probability")),
      this.prompt, this.spoken, this.tip.node,
    );
    this.loss = new LossNote(this.root);
    this.log.node.after(this.loss.node);
    this.#showRunning();
    el.replaceChildren(this.root);
  }

  destroy() {
    clearTimeout(this.waiting);
    clearTimeout(this.sure);
    this.connection.close();
    this.root.remove();
  }

  /** A listener whose errors are shown. @param {(event?: any) => any} listener @returns {(event?: any) => void} */
  guarded(listener) {
    return (event) => {
      try {
        listener(event);
      } catch (problem) {
        this.errors.show(problem);
      }
    };
  }

  get running() {
    return this.turns.at(-1)?.state === "running";
  }

  // To the kernel

  /** @param {string} type @param {Record<string, any>} fields @param {boolean} [answered] whether an answer is due */
  #send(type, fields, answered = false) {
    if (answered) {
      clearTimeout(this.waiting);
      this.waiting = window.setTimeout(() => setText(this.status, BUSY), PATIENCE);
    }
    try {
      this.connection.send({ type, ...fields });
    } catch {
      // The kernel is gone, as the note says by now.
    }
  }

  #showConnection() {
    const { connection } = this;
    this.loss.show(connection, [this.exports, this.controls.node, this.send, this.stop, this.prompt], () => LOST);
    clearTimeout(this.waiting);
    if (connection.isLost) setText(this.status, "");
    else if (connection.isUnanswered) setText(this.status, BUSY);
    else this.#answered();
  }

  /** @param {string} type @param {Record<string, any>} fields */
  #ask(type, fields) {
    if (this.connection.isLost) return;
    this.errors.clear();
    this.#send(type, { ...fields, request: ++this.request, controls: this.controls.values }, true);
  }

  #submit() {
    if (this.running) setText(this.status, "Escape stops the answer; then Enter sends");
    if (this.running || !this.field.value.trim()) return;
    this.#ask("ask", { text: this.field.value });
    this.asked = this.request;
  }

  #stop() {
    if (!this.running || this.connection.isLost) return;
    this.#send("stop", {}, true);
    setAttribute(this.stop, "aria-busy", "true");
  }

  /** Must be pressed twice: the conversation is lost. */
  #clear() {
    if (this.sure) {
      this.#notSure();
      this.#ask("clear", {});
      return;
    }
    setText(this.clear, "Delete this one?");
    this.sure = window.setTimeout(() => this.#notSure(), 4000);
  }

  #notSure() {
    clearTimeout(this.sure);
    this.sure = 0;
    setText(this.clear, "New conversation");
  }

  #askPrompt() {
    if (this.prompt.open) this.#send("prompt", { text: this.field.value, controls: this.controls.values });
  }

  /** @param {KeyboardEvent} event */
  #onKey(event) {
    if (event.key === "Escape") this.#stop();
    else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      this.#submit();
    }
  }

  // From the kernel

  /** @param {any} content */
  #take(content) {
    if (content.type === "state") this.#takeState(content);
    else if (content.type === "tokens") this.#takeTokens(content);
    else if (content.type === "accepted") this.#accepted(content);
    else if (content.type === "prompt") this.#showPrompt(content);
    else if (content.type === "exported") download(content);
    else if (content.type === "refused") this.#problem(content.reason);
    else if (content.type === "problem") this.#problem(content.text);
  }

  /** @param {any} content */
  #takeState({ seq, name, shape, controls, turns }) {
    if (seq < this.seq) return;
    this.connection.answered();
    this.seq = seq;
    const wasRunning = this.running;
    this.turns = turns;
    this.#answered();
    setText(this.name, name);
    setAttribute(this.name, "title", name);
    setAttribute(this.root, "aria-label", `Chat with ${name}`);
    setText(this.about, shape);
    setAttribute(this.about, "title", shape);
    this.controls.show(controls);
    this.tip.hide();
    this.log.show(turns);
    this.#showRunning();
    const last = turns.at(-1);
    if (wasRunning && !this.running && last) {
      setText(this.spoken, last.state === "failed" ? `No answer: ${last.error}` : `The answer is ${last.state === "stopped" ? "stopped" : "complete"}.`);
    }
    this.#askPrompt();
  }

  /** @param {any} content */
  #takeTokens({ turn, first, tokens, seconds }) {
    if (this.seq < 0) return; // all of it is on its way
    if (this.log.take(turn, first, tokens, seconds)) return;
    this.seq = -1; // something was lost
    this.connection.hello();
  }

  /** @param {{request: number}} content */
  #accepted({ request }) {
    this.#answered();
    if (request !== this.asked) return;
    this.field.value = "";
    this.#grow();
  }

  /** @param {string} text */
  #problem(text) {
    this.#answered();
    this.errors.show(text);
  }

  /** @param {{parts: [string, boolean][], count: number, reason: string}} content */
  #showPrompt({ parts, count, reason }) {
    this.parts.replaceChildren(...parts.map(([text, control]) => element(control ? "b" : "span", { text })));
    this.parts.hidden = Boolean(reason);
    const tokens = `${formatCount(count)} token${count === 1 ? "" : "s"}`;
    const marked = parts.some(([, control]) => control) ? "; marked: the template's own control tokens" : "";
    setText(this.count, reason || `${tokens}${marked}`);
    this.count.classList.toggle("bad", Boolean(reason));
  }

  #answered() {
    clearTimeout(this.waiting);
    setText(this.status, this.running ? "Escape stops" : "Enter sends, Shift+Enter adds a line");
  }

  #showRunning() {
    const { running } = this;
    const focused = document.activeElement === (running ? this.send : this.stop);
    setShown(this.send, !running);
    setShown(this.stop, running);
    setShown(this.clear, !running);
    setShown(this.exports, this.turns.length > 0);
    if (!running) setAttribute(this.stop, "aria-busy", null);
    if (focused) (running ? this.stop : this.field).focus(); // the button that had it is gone
  }

  /** As high as what is typed, up to some lines. */
  #grow() {
    setAttribute(this.field, "rows", String(Math.min(8, this.field.value.split("\n").length)));
  }
}

/** Give a file to the browser. @param {{name: string, media: string, text: string}} file */
function download({ name, media, text }) {
  const address = URL.createObjectURL(new Blob([text], { type: media }));
  const link = element("a", { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

/** @param {{model: any, el: HTMLElement}} context @returns {() => void} */
function render({ model, el }) {
  const view = new ChatView(model, el);
  return () => view.destroy();
}

export default { render };

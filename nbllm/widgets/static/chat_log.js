// @ts-check
/** The conversation: what was asked and answered, oldest first. */
import { element, formatCount, formatNumber } from "./common.js";
import { keyed, setAttribute, setShown, setText } from "./dom.js";
import { TokenRun } from "./chat_tokens.js";

/**
 * @typedef {{id: number, role: "user" | "assistant", text: string, state: string, facts: Record<string, any>, error: string}} ChatTurn
 * @typedef {{edit: (turn: number, text: string) => void, regenerate: () => void, guarded: (listener: (event?: any) => any) => (event?: any) => void}} ChatActions
 */

const ENDED = new Map([
  ["length", "cut off at the token limit"],
  ["context", "the context is full"],
  ["stop", "ended by a stop string"],
]);
const AT_END = 24; // pixels from the end within which new text keeps the end in view

export class ChatLog {
  /** @param {import("./chat_tokens.js").TokenTip} tip @param {ChatActions} actions */
  constructor(tip, actions) {
    this.tip = tip;
    this.actions = actions;
    this.empty = element(
      "div",
      { class: "chat-empty muted" },
      element("strong", { text: "No messages yet." }), element("br"),
      "Ask something below. Point at a token of an answer to see its probability and the most probable alternatives.",
    );
    this.list = element("div", { class: "chat-turns" });
    this.node = element(
      "div",
      { class: "chat-log", role: "log", "aria-live": "polite", "aria-label": "Conversation", tabindex: 0 },
      this.empty, this.list,
    );
    /** The id of the last turn. @type {number | undefined} */
    this.newest = undefined;
    this.node.addEventListener("scroll", () => this.tip.hide());
  }

  /** @param {ChatTurn[]} turns */
  show(turns) {
    const last = turns.at(-1);
    this.#keepEnd(() => {
      setShown(this.empty, turns.length === 0);
      // What is written piece by piece is spoken when it is whole.
      setAttribute(this.node, "aria-busy", last?.state === "running" ? "true" : null);
      const running = last?.state === "running";
      keyed(this.list, turns, ({ id }) => String(id), (turn) => this.#make(turn).node, (node, turn) =>
        node.nbllmTurn.update(turn, { running, last: turn === last }));
    }, last?.id !== this.newest);
    this.newest = last?.id;
  }

  /** @param {number} id @param {number} first @param {any[]} tokens @param {number} seconds @returns {boolean} whether they fit */
  take(id, first, tokens, seconds) {
    const node = Array.from(this.list.children).find((one) => /** @type {any} */ (one).nbllmTurn.id === id);
    const turn = /** @type {any} */ (node)?.nbllmTurn;
    if (!(turn instanceof AnswerTurn) || first > turn.run.count) return false;
    this.#keepEnd(() => turn.take(first, tokens, seconds));
    return true;
  }

  /** @param {ChatTurn} turn */
  #make(turn) {
    return turn.role === "user" ? new QuestionTurn(turn, this.actions) : new AnswerTurn(turn, this.tip, this.actions);
  }

  /** Keep the end in view if it is, and scroll to it after a question. @param {() => void} change @param {boolean} [asked] */
  #keepEnd(change, asked = false) {
    const { node } = this;
    const atEnd = asked || node.scrollHeight - node.scrollTop - node.clientHeight < AT_END;
    change();
    if (atEnd) node.scrollTop = node.scrollHeight;
  }
}

class QuestionTurn {
  /** @param {ChatTurn} turn @param {ChatActions} actions */
  constructor(turn, actions) {
    this.id = turn.id;
    this.actions = actions;
    this.text = element("div", { class: "chat-text", dir: "auto", text: turn.text });
    this.raw = turn.text;
    this.button = element("button", { type: "button", class: "chat-small", text: "Edit", "aria-label": "Edit this question", onclick: actions.guarded(() => this.#open(true)) });
    this.field = element("textarea", { rows: 3, dir: "auto", "aria-label": "Edited question", onkeydown: actions.guarded((event) => this.#onKey(event)) });
    this.form = element(
      "div",
      { class: "chat-edit", hidden: true },
      this.field,
      element(
        "div",
        { class: "chat-row" },
        element("button", { type: "button", class: "chat-button primary", text: "Ask again", onclick: actions.guarded(() => this.#ask()) }),
        element("button", { type: "button", class: "chat-button", text: "Cancel", onclick: actions.guarded(() => this.#open(false)) }),
        element("span", { class: "muted chat-hint", text: "What follows it is deleted." }),
      ),
    );
    this.node = Object.assign(
      element("div", { class: "chat-turn chat-user" },
        element("div", { class: "chat-who" }, element("strong", { text: "You" }), this.button), this.text, this.form),
      { nbllmTurn: this },
    );
  }

  /** @param {ChatTurn} _ @param {{running: boolean}} now */
  update(_, { running }) {
    if (running) this.#open(false);
    setShown(this.button, !running && this.form.hidden);
  }

  /** @param {boolean} open */
  #open(open) {
    if (open === !this.form.hidden) return;
    const focused = this.form.contains(document.activeElement);
    this.form.hidden = !open;
    this.text.hidden = open;
    this.button.hidden = open;
    if (open) {
      this.field.value = this.raw;
      this.field.focus();
    } else if (focused) this.button.focus();
  }

  #ask() {
    if (this.field.value.trim()) this.actions.edit(this.id, this.field.value);
  }

  /** @param {KeyboardEvent} event */
  #onKey(event) {
    if (event.key === "Escape") this.#open(false);
    else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      this.#ask();
    }
  }
}

class AnswerTurn {
  /** @param {ChatTurn} turn @param {import("./chat_tokens.js").TokenTip} tip @param {ChatActions} actions */
  constructor(turn, tip, actions) {
    this.id = turn.id;
    this.run = new TokenRun(tip);
    this.turn = turn;
    this.seconds = 0;
    this.error = element("div", { class: "chat-failure bad", hidden: true });
    this.facts = element("span", { class: "chat-facts" });
    this.button = element("button", { type: "button", class: "chat-small", text: "Regenerate", onclick: actions.guarded(() => actions.regenerate()) });
    this.node = Object.assign(
      element("div", { class: "chat-turn chat-model" },
        element("div", { class: "chat-who" }, element("strong", { text: "Model" })), this.run.node, this.error,
        element("div", { class: "chat-foot muted" }, this.facts, this.button)),
      { nbllmTurn: this },
    );
  }

  /** @param {ChatTurn} turn @param {{running: boolean, last: boolean}} now */
  update(turn, { running, last }) {
    this.turn = turn;
    setText(this.error, turn.error);
    setShown(this.error, turn.state === "failed");
    setText(this.button, turn.state === "failed" ? "Try again" : "Regenerate");
    setShown(this.button, last && !running);
    this.node.classList.toggle("chat-running", turn.state === "running");
    this.#showFacts();
  }

  /** @param {number} first @param {any[]} tokens @param {number} seconds */
  take(first, tokens, seconds) {
    this.run.take(first, tokens);
    this.seconds = seconds;
    this.#showFacts();
  }

  #showFacts() {
    const { state, facts } = this.turn;
    const parts = [];
    if (state === "running") {
      parts.push(this.run.count ? `${countTokens(this.run.count)}, ${speed(this.run.count / this.seconds)}` : "reading the conversation…");
    } else if (state !== "failed") {
      parts.push(countTokens(facts.num_tokens), speed(facts.tokens_per_second));
      const end = state === "stopped" ? "stopped by you" : ENDED.get(facts.stopped_by);
      if (end) parts.push(end);
      parts.push(`context ${formatCount(facts.context)} of ${formatCount(facts.max_positions)}`);
    }
    setShown(this.facts, parts.length > 0);
    setText(this.facts, parts.join(", "));
    setAttribute(this.facts, "title", facts.seed === undefined ? null : `seed ${facts.seed}`);
  }
}

/** @param {number} count */
function countTokens(count) {
  return `${formatCount(count)} token${count === 1 ? "" : "s"}`;
}

/** @param {number} rate @returns {string} */
function speed(rate) {
  return `${Number.isFinite(rate) ? formatNumber(rate, 3) : "–"} tokens/s`;
}

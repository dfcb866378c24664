// @ts-check
/** The tokens of an answer: each shows its probability and its likeliest alternatives, to pointer and keyboard. */
import { element, visibleText } from "./common.js";

/**
 * @typedef {[text: string, shown: string, probability: number, alternatives: [string, number][]]} ChatToken
 *   text: what it adds to the answer; shown: the token by itself
 */

const MOST_SHOWN = 24; // characters of a token in the tip

/** @param {number} probability from 0 to 1 @returns {string} */
export function formatProbability(probability) {
  const percent = probability * 100;
  if (percent < 0.1) return "< 0.1 %";
  if (percent > 99.9 && percent < 100) return "> 99.9 %";
  return `${percent.toFixed(1)} %`;
}

/** @param {string} text @returns {string} with its white space to be seen */
export function visibleToken(text) {
  const shown = visibleText(text)
    .replaceAll("\n", "↵")
    .replaceAll("\t", "⇥")
    .replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length));
  return shown.length > MOST_SHOWN ? `${shown.slice(0, MOST_SHOWN - 1)}…` : shown;
}

/** The box that tells of the token under the pointer or the cursor; one a panel. */
export class TokenTip {
  /** @param {HTMLElement} root what it stands in @param {(text: string) => void} announce */
  constructor(root, announce) {
    this.root = root;
    this.announce = announce;
    this.node = element("div", { class: "chat-tip", role: "tooltip", hidden: true });
    /** @type {HTMLElement | null} */
    this.of = null;
  }

  /** @param {HTMLElement} span @param {ChatToken[]} tokens @param {boolean} spoken */
  show(span, tokens, spoken) {
    if (this.of !== span) this.of?.classList.remove("chat-pointed");
    this.of = span;
    span.classList.add("chat-pointed");
    this.node.replaceChildren(...tokens.map(makeTipTable));
    this.node.hidden = false;
    this.#place(span);
    if (spoken) this.announce(tokens.map(describeToken).join(" "));
  }

  hide() {
    this.of?.classList.remove("chat-pointed");
    this.of = null;
    this.node.hidden = true;
  }

  /** Below the token, or above it where there is no room; within the panel's width. @param {HTMLElement} span */
  #place(span) {
    const [at, box] = [span.getClientRects()[0] ?? span.getBoundingClientRect(), this.root.getBoundingClientRect()];
    const { offsetWidth: width, offsetHeight: height } = this.node;
    const left = Math.max(4, Math.min(at.left - box.left, box.width - width - 6));
    const below = at.bottom - box.top + 4;
    const fits = below + height <= box.height && at.bottom + 4 + height <= window.innerHeight;
    const above = at.top - box.top - height - 4;
    this.node.style.left = `${left}px`;
    this.node.style.top = `${fits || above < 0 ? below : above}px`;
  }
}

/** The text of an answer that grows. */
export class TokenRun {
  /** @param {TokenTip} tip */
  constructor(tip) {
    this.tip = tip;
    this.count = 0;
    /** Tokens whose text is not whole yet: parts of a character. @type {ChatToken[]} */
    this.open = [];
    /** @type {HTMLElement[]} */
    this.spans = [];
    /** @type {Map<EventTarget, ChatToken[]>} */
    this.tokens = new Map();
    this.cursor = -1;
    /** The line so far, and whether it stands in a fence of Markdown: code is set in its own type, all else as it is. */
    this.line = "";
    this.fenced = false;
    this.node = element("div", {
      class: "chat-text", dir: "auto", tabindex: 0, role: "group",
      "aria-label": "Answer; arrow keys go through its tokens and tell their probabilities",
      onpointerover: (/** @type {any} */ event) => this.#point(event.target),
      onclick: (/** @type {any} */ event) => this.#point(event.target),
      onpointerleave: () => this.tip.hide(),
      onblur: () => this.tip.hide(),
      onkeydown: (/** @type {any} */ event) => this.#onKey(event),
    });
  }

  /** @param {number} first the index of the first of them @param {ChatToken[]} tokens */
  take(first, tokens) {
    const added = [];
    for (const token of tokens.slice(this.count - first)) {
      this.count++;
      this.open.push(token);
      if (!token[0]) continue;
      const span = element("span", { class: `chat-token${this.#isCode(token[0]) ? " chat-code" : ""}`, text: token[0] });
      const least = Math.min(...this.open.map(([, , probability]) => probability));
      span.style.setProperty("--doubt", String(Math.round((1 - least) * 100) / 100));
      this.tokens.set(span, this.open);
      this.open = [];
      this.spans.push(span);
      added.push(span);
    }
    this.node.append(...added);
  }

  /** @param {string} text of the next token */
  #isCode(text) {
    const before = this.fenced;
    const [first, ...lines] = text.split("\n");
    this.line += first;
    for (const line of lines) {
      if (this.line.startsWith("```")) this.fenced = !this.fenced;
      this.line = line;
    }
    return this.fenced || this.line.startsWith("```") || (before && this.line === "");
  }

  /** @param {any} target */
  #point(target) {
    const tokens = this.tokens.get(target);
    if (!tokens) return this.tip.hide();
    this.cursor = this.spans.indexOf(target);
    this.tip.show(target, tokens, false);
  }

  /** @param {KeyboardEvent} event */
  #onKey(event) {
    const last = this.spans.length - 1;
    const to = {
      ArrowRight: Math.min(this.cursor + 1, last), ArrowLeft: Math.max(this.cursor - 1, 0), Home: 0, End: last,
    }[event.key];
    if (event.key === "Escape") this.tip.hide();
    if (to === undefined || last < 0 || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    event.preventDefault();
    this.cursor = to;
    const span = this.spans[to];
    span.scrollIntoView({ block: "nearest" });
    this.tip.show(span, this.tokens.get(span) ?? [], true);
  }
}

/** @param {ChatToken} token */
function makeTipTable([, shown, probability, alternatives]) {
  /** @param {string} text @param {number} value @param {string} kind */
  const row = (text, value, kind) =>
    element(
      "div",
      { class: `chat-tip-row ${kind}` },
      element("bdi", { class: "chat-tip-token", text: visibleToken(text) }),
      element("span", { class: "chat-tip-bar" }, element("span", { style: { width: `${Math.max(1, value * 100)}%` } })),
      element("span", { class: "chat-tip-value", text: formatProbability(value) }),
    );
  return element(
    "div",
    { class: "chat-tip-table" },
    row(shown, probability, "chosen"),
    alternatives.map(([text, value]) => row(text, value, "other")),
  );
}

/** @param {ChatToken} token @returns {string} for screen readers */
function describeToken([, shown, probability, alternatives]) {
  const others = alternatives.map(([text, value]) => `${visibleToken(text)} ${formatProbability(value)}`).join(", ");
  return `${visibleToken(shown)} ${formatProbability(probability)}; instead: ${others}.`;
}

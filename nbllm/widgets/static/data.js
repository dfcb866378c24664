// @ts-check
/** The panel of a preparation: steps, thresholds, documents, duplicates, whose text was removed, code. */
import { element, errorBox, formatBytes, formatCount, suppressShortcuts } from "./common.js";
import { Connection, LossNote } from "./connection.js";
import { setAttribute, setShown, setText } from "./dom.js";
import { AuditTable } from "./data_audit.js";
import { DocumentList } from "./data_documents.js";
import { DuplicateList } from "./data_duplicates.js";
import { StepTable } from "./data_steps.js";
import { ThresholdList } from "./data_thresholds.js";

/**
 * @typedef {{documents: number, bytes: number, tokens: number}} Amount
 * @typedef {{name: string, signal: string, keep: "at least" | "at most", threshold: number, unit: string,
 *   whole: boolean, edges: number[], counts: number[], log: boolean, missing: number}} DataRule
 * @typedef {{name: string, left: Amount, rules: {name: string, kind: string, hits: number, removed: Amount}[]}} DataStep
 */

const UNANSWERED = "The kernel has not answered yet: it is busy with a cell, or was restarted.";
const LOST = "If the kernel has ended, run the cell again.";
const OUTLOOK_WAIT = 80; // milliseconds after the last move of a slider

class PreparationView {
  /** @param {any} model @param {HTMLElement} el */
  constructor(model, el) {
    this.request = 0;
    this.timer = 0;
    /** @type {Record<string, number>} the request that the newest answer of a kind must have */
    this.newest = {};
    this.error = errorBox();
    this.head = element("div", { class: "data-head" });
    this.status = element("div", { class: "muted", role: "status", text: "Waiting for the kernel…" });
    this.steps = new StepTable();
    this.thresholds = new ThresholdList(() => this.#moved());
    this.documents = new DocumentList((name, start, count) =>
      this.#ask("page", { name, start, count, thresholds: this.thresholds.moved }));
    this.duplicates = new DuplicateList((start, count) => this.#ask("pairs", { start, count }));
    this.audit = new AuditTable(() => this.#ask("audit", {}));
    this.code = element("pre", { class: "data-code", tabindex: 0, "aria-label": "The preparation as Python" });
    this.copied = element("span", { class: "muted", role: "status" });
    const code = element("div", null,
      element("p", { class: "muted", text: "The same steps, with the thresholds as they are set here:" }), this.code,
      element("button", { type: "button", class: "data-button", text: "Copy", onclick: () => this.#copy() }), " ", this.copied,
      element("p", { class: "muted" }, "As a part of a report: ", element("code", { text: "nb.evaluate(lm).add(clean)" }), "."));
    /** @type {[string, HTMLElement][]} */
    this.parts = [["Steps", this.steps.node], ["Thresholds", this.thresholds.node], ["Documents", this.documents.node],
      ["Duplicates", this.duplicates.node], ["Audit", this.audit.node], ["Code", code]];
    this.tabs = element("div", { class: "data-tabs", role: "tablist", onkeydown: (/** @type {KeyboardEvent} */ event) => this.#key(event) });
    for (const [name, node] of this.parts) {
      this.tabs.append(element("button", {
        type: "button", role: "tab", class: "data-tab", text: name, onclick: () => this.#open(name), dataset: { name },
      }));
      setAttribute(node, "role", "tabpanel");
      setAttribute(node, "aria-label", name);
    }
    el.classList.add("nbllm", "nbllm-panel");
    this.body = element("div", { hidden: true }, this.head, this.tabs, this.parts.map(([, node]) => node));
    this.root = element("div", { class: "data-panel", onfocusin: suppressShortcuts }, this.status, this.body, this.error.node);
    this.loss = new LossNote(el);
    this.root.prepend(this.loss.node);
    el.append(this.root);
    this.#open("Steps");
    this.connection = new Connection({
      onMessage: (content) => this.#take(content),
      onChange: () => this.#showConnection(),
      onProblem: (problem) => this.error.show(problem),
    });
    this.connection.open(model);
  }

  destroy() {
    clearTimeout(this.timer);
    this.connection.close();
    this.root.remove();
  }

  #showConnection() {
    this.loss.show(this.connection, [this.thresholds.node, this.documents.node, this.duplicates.node], () => LOST);
    if (this.body.hidden && this.connection.isUnanswered) setText(this.status, UNANSWERED);
  }

  /** @param {string} type @param {Record<string, any>} fields */
  #ask(type, fields) {
    this.newest[type] = ++this.request;
    try {
      this.connection.send({ type, ...fields, request: this.request });
    } catch {
      // The kernel is gone, as the note says by now.
    }
  }

  /** @param {any} content */
  #take(content) {
    if (content.type === "state") this.#takeState(content);
    else if (content.type === "outlook" && content.request === this.newest.outlook) {
      this.thresholds.showOutlook(content);
      setText(this.code, content.code);
    } else if (content.type === "page" && content.request === this.newest.page) this.documents.show(content);
    else if (content.type === "audit") this.audit.show(content);
    else if (content.type === "pairs" && content.request === this.newest.pairs) this.duplicates.show(content);
    else if (content.type === "refused") this.error.show(content.reason);
    else if (content.type === "problem") this.error.show(content.text);
  }

  /** @param {any} content */
  #takeState({ folder, tokens, omitted, raw, kept, steps, rules, lists, pairs, code }) {
    this.connection.answered();
    setShown(this.status, false);
    setShown(this.body, true);
    const share = raw.bytes ? kept.bytes / raw.bytes : 1;
    this.head.replaceChildren(
      element("strong", { text: `${formatCount(kept.documents)} of ${formatCount(raw.documents)} documents kept` }),
      element("span", { text: `${formatBytes(kept.bytes)} of ${formatBytes(raw.bytes)} (${(100 * share).toFixed(1)} %), ${formatCount(kept.tokens)} tokens` }),
      element("span", { class: "muted", text: `tokens: ${tokens}` }));
    setAttribute(this.head, "title", folder);
    this.steps.show(raw, steps, omitted, (list) => {
      this.#open("Documents");
      this.documents.choose(list);
    });
    this.thresholds.show(rules, raw);
    this.documents.setLists(lists);
    this.duplicates.setTotal(pairs);
    setText(this.code, code);
    this.#count("Duplicates", pairs);
    this.#count("Thresholds", rules.length);
    if (Object.keys(this.thresholds.moved).length) this.#moved();
  }

  /** @param {string} name @param {number} count */
  #count(name, count) {
    const tab = this.#tab(name);
    setText(tab, count ? `${name} (${formatCount(count)})` : name);
  }

  /** @param {string} name @returns {any} */
  #tab(name) {
    return Array.from(this.tabs.children).find((each) => /** @type {any} */ (each).dataset.name === name);
  }

  /** @param {string} name */
  #open(name) {
    for (const [each, node] of this.parts) {
      setShown(node, each === name);
      setAttribute(this.#tab(each), "aria-selected", String(each === name));
      setAttribute(this.#tab(each), "tabindex", each === name ? 0 : -1);
    }
    if (name === "Documents") this.documents.open();
    if (name === "Duplicates") this.duplicates.open();
    if (name === "Audit") this.audit.open();
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const step = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
    if (!step) return;
    const names = this.parts.map(([name]) => name);
    const at = names.findIndex((name) => this.#tab(name) === document.activeElement);
    if (at < 0) return;
    event.preventDefault();
    const next = names[(at + step + names.length) % names.length];
    this.#open(next);
    this.#tab(next).focus();
  }

  #moved() {
    clearTimeout(this.timer);
    this.timer = window.setTimeout(() => {
      this.#ask("outlook", { thresholds: this.thresholds.moved });
      this.documents.setMoved(Object.keys(this.thresholds.moved).length > 0);
    }, OUTLOOK_WAIT);
  }

  #copy() {
    const { textContent } = this.code;
    navigator.clipboard?.writeText(textContent ?? "").then(
      () => setText(this.copied, "Copied."), () => setText(this.copied, "Select the text and copy it."));
    if (!navigator.clipboard) setText(this.copied, "Select the text and copy it.");
  }
}

/** @param {{model: any, el: HTMLElement}} context @returns {() => void} */
function render({ model, el }) {
  const view = new PreparationView(model, el);
  return () => view.destroy();
}

export default { render };

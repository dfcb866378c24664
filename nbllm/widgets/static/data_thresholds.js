// @ts-check
/** The thresholds of a preparation: the histogram of each signal, and a slider that says what would be kept. */
import { element, formatBytes, formatCount, formatNumber } from "./common.js";
import { setAttribute, setShown, setText } from "./dom.js";

const SLIDER_STEPS = 400;
const WIDTH = 400;
const HEIGHT = 44;

/** One rule: a histogram with its threshold, a slider, a number. */
class ThresholdRow {
  /** @param {import("./data.js").DataRule} rule @param {number} documents all that were read @param {() => void} onMove */
  constructor(rule, documents, onMove) {
    this.rule = rule;
    this.documents = documents;
    this.onMove = onMove;
    this.value = rule.threshold;
    const low = this.low = rule.edges[0];
    const high = this.high = rule.edges[rule.edges.length - 1];
    this.line = svg("line", { y1: 0, y2: HEIGHT, class: "data-limit" });
    this.bars = rule.counts.map((count, i) => {
      const left = this.#x(rule.edges[i]);
      const right = this.#x(rule.edges[i + 1]);
      const most = Math.max(...rule.counts, 1);
      const height = count ? Math.max(1.5, (HEIGHT - 2) * Math.sqrt(count / most)) : 0;
      const title = svg("title", {});
      title.textContent = `${formatNumber(rule.edges[i], 3)} to ${formatNumber(rule.edges[i + 1], 3)}: ${formatCount(count)} documents`;
      const bar = svg("rect", { x: left + 0.5, width: Math.max(0.5, right - left - 1), y: HEIGHT - height, height });
      bar.append(title);
      return bar;
    });
    const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", class: "data-histogram", "aria-hidden": "true" });
    picture.append(...this.bars, this.line);
    const name = rule.name.slice(rule.name.indexOf(": ") + 2);
    this.slider = element("input", {
      type: "range", min: 0, max: SLIDER_STEPS, step: 1, "aria-label": `Threshold of ${rule.name}`,
      oninput: () => this.#set(this.#fromSlider(Number(this.slider.value)), true),
    });
    this.field = element("input", {
      type: "number", class: "data-number", step: "any", "aria-label": `Threshold of ${rule.name}, as a number`,
      onchange: () => Number.isFinite(Number(this.field.value)) && this.field.value !== "" ? this.#set(Number(this.field.value), true) : this.#set(this.value, false),
    });
    this.effect = element("span", { class: "muted data-effect" });
    this.reset = element("button", { type: "button", class: "data-button", text: "Undo", title: `Back to ${formatNumber(rule.threshold)}`, onclick: () => this.#set(rule.threshold, true) });
    const axis = element("div", { class: "data-axis muted" },
      element("span", { text: formatNumber(low, 3) }), rule.log ? element("span", { text: "logarithmic" }) : null,
      element("span", { text: `${formatNumber(high, 3)}${rule.unit ? ` ${rule.unit}` : ""}` }));
    this.node = element("div", { class: "data-threshold" },
      element("div", { class: "data-name" }, element("strong", { text: name }), this.field, rule.unit ? element("span", { class: "muted", text: rule.unit }) : null, this.reset, this.effect),
      element("div", { class: "data-drawn" }, picture, this.slider, axis));
    this.#set(rule.threshold, false);
  }

  get isMoved() {
    return this.value !== this.rule.threshold;
  }

  /** @param {number} value in units of the signal @returns {number} in those of the picture */
  #x(value) {
    const { low, high, rule } = this;
    const clipped = Math.min(high, Math.max(low, value));
    return WIDTH * (rule.log ? Math.log(clipped / low) / Math.log(high / low) : (clipped - low) / (high - low));
  }

  /** @param {number} at from 0 to SLIDER_STEPS @returns {number} */
  #fromSlider(at) {
    const share = at / SLIDER_STEPS;
    const { low, high, rule } = this;
    const value = rule.log ? low * (high / low) ** share : low + (high - low) * share;
    return rule.whole ? Math.round(value) : Number(value.toPrecision(4));
  }

  /** @param {number} value @param {boolean} byUser */
  #set(value, byUser) {
    this.value = value;
    const x = this.#x(value);
    setAttribute(this.line, "x1", x);
    setAttribute(this.line, "x2", x);
    this.slider.value = String(Math.round(SLIDER_STEPS * x / WIDTH));
    this.field.value = String(Number(value.toPrecision(6)));
    setAttribute(this.slider, "aria-valuetext", formatNumber(value));
    const atLeast = this.rule.keep === "at least";
    let broken = 0;
    this.rule.counts.forEach((count, i) => {
      const middle = (this.rule.edges[i] + this.rule.edges[i + 1]) / 2;
      const removed = atLeast ? middle < value : middle > value;
      this.bars[i].setAttribute("class", removed ? "data-removed" : "data-kept");
      if (removed) broken += count;
    });
    setText(this.effect, `about ${formatCount(broken)} of ${formatCount(this.documents)} break it`);
    this.node.classList.toggle("data-moved", this.isMoved);
    setShown(this.reset, this.isMoved);
    if (byUser) this.onMove();
  }

  undo() {
    this.#set(this.rule.threshold, false);
  }

  /** @param {import("./data.js").Amount | undefined} removed by it, at these thresholds */
  showRemoved(removed) {
    setText(this.effect, removed ? `removes ${formatCount(removed.documents)}, ${formatBytes(removed.bytes)}` : "removes nothing more");
  }
}

export class ThresholdList {
  /** @param {() => void} onMove */
  constructor(onMove) {
    this.onMove = onMove;
    /** @type {ThresholdRow[]} */
    this.rows = [];
    this.outlook = element("div", { class: "data-outlook", role: "status" });
    this.undo = element("button", { type: "button", class: "data-button", text: "Undo all", hidden: true, onclick: () => this.#undo() });
    this.list = element("div");
    this.node = element("div", null, element("div", { class: "data-bar-top" }, this.outlook, this.undo), this.list);
  }

  /** The thresholds that differ from the preparation's, by rule. @returns {Record<string, number>} */
  get moved() {
    return Object.fromEntries(this.rows.filter((row) => row.isMoved).map((row) => [row.rule.name, row.value]));
  }

  /** @param {import("./data.js").DataRule[]} rules @param {import("./data.js").Amount} raw */
  show(rules, raw) {
    this.raw = raw;
    if (this.rows.length === rules.length && this.rows.every((row, i) => row.rule.name === rules[i].name)) return; // reconnected
    this.rows = rules.map((rule) => new ThresholdRow(rule, raw.documents, () => {
      setShown(this.undo, Object.keys(this.moved).length > 0);
      this.onMove();
    }));
    const parts = [];
    let step = "";
    for (const row of this.rows) {
      const own = row.rule.name.slice(0, row.rule.name.indexOf(": "));
      if (own !== step) parts.push(element("h4", { text: (step = own) }));
      parts.push(row.node);
    }
    if (!parts.length) parts.push(element("p", { class: "muted", text: "No step of this preparation has a threshold that could be moved." }));
    this.list.replaceChildren(...parts);
    setText(this.outlook, parts.length && this.rows.length ? "Move a threshold to see what would be kept. Nothing is run again." : "");
  }

  /** @param {{kept: import("./data.js").Amount, unknown: import("./data.js").Amount, removed: [string, import("./data.js").Amount][]}} found */
  showOutlook({ kept, unknown, removed }) {
    const share = this.raw?.bytes ? kept.bytes / this.raw.bytes : 1;
    const more = unknown.documents ? `; ${formatCount(unknown.documents)} cannot be told without a new run` : "";
    setText(this.outlook, `${formatCount(kept.documents)} of ${formatCount(this.raw?.documents)} documents would be kept: ${formatBytes(kept.bytes)} (${(100 * share).toFixed(1)} %), ${formatCount(kept.tokens)} tokens${more}.`);
    const by = new Map(removed);
    for (const row of this.rows) row.showRemoved(by.get(row.rule.name));
  }

  #undo() {
    for (const row of this.rows) row.undo();
    setShown(this.undo, false);
    this.onMove();
  }
}

/** @param {string} tag @param {Record<string, any>} attributes @returns {any} */
function svg(tag, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
  return node;
}

// @ts-check
/** What each step of a preparation left, as bars, and which rules removed how much. */
import { element, formatBytes, formatCount } from "./common.js";

export class StepTable {
  constructor() {
    this.node = element("div");
  }

  /**
   * @param {import("./data.js").Amount} raw @param {import("./data.js").DataStep[]} steps
   * @param {Record<string, number>} omitted what could not be read @param {(list: string) => void} onRule
   */
  show(raw, steps, omitted, onRule) {
    const rows = [this.#row("(raw)", raw, raw)];
    for (const step of steps) {
      if (step.left.documents === raw.documents && step.name === "read") continue; // all of it could be read
      rows.push(this.#row(step.name, step.left, raw));
      for (const rule of step.rules) {
        const name = `${step.name}: ${rule.name}`;
        const own = rule.kind === "document";
        rows.push(element("tr", { class: "data-rule" },
          element("td", null, element("button", { type: "button", class: "data-link", text: rule.name, onclick: () => onRule(name), title: "Show what it removed" })),
          element("td", { class: "number", text: own ? minus(formatCount(rule.removed.documents)) : "" }),
          element("td", { class: "number", text: own ? minus(formatCount(rule.removed.tokens)) : "" }),
          element("td", { class: "number", text: minus(formatBytes(rule.removed.bytes)) }),
          element("td", { text: own ? `broken by ${formatCount(rule.hits)}` : `${formatCount(rule.hits)} ${rule.kind}${rule.hits === 1 ? "" : "s"}` })));
      }
    }
    const header = ["step", "documents", "tokens", "bytes", "kept"].map((name, i) =>
      element("th", { scope: "col", class: i && i < 4 ? "number" : null, text: name }));
    const table = element("table", { class: "data-steps" }, element("thead", null, element("tr", null, header)), element("tbody", null, rows));
    const notes = Object.entries(omitted).map(([kind, count]) =>
      element("p", { class: "muted", text: `Left out, since it could not be read: ${formatCount(count)} x ${kind}.` }));
    this.node.replaceChildren(element("div", { class: "data-scroll" }, table), ...notes);
  }

  /** @param {string} name @param {import("./data.js").Amount} left @param {import("./data.js").Amount} raw */
  #row(name, left, raw) {
    const share = raw.bytes ? left.bytes / raw.bytes : 1;
    return element("tr", null, element("th", { scope: "row", text: name }),
      element("td", { class: "number", text: formatCount(left.documents) }),
      element("td", { class: "number", text: formatCount(left.tokens) }),
      element("td", { class: "number", text: formatBytes(left.bytes) }),
      element("td", { class: "data-share" },
        element("span", { class: "data-bar" }, element("span", { style: { width: `${100 * share}%` } })),
        element("span", { class: "data-percent", text: `${(100 * share).toFixed(1)} %` })));
  }
}

/** @param {string} amount @returns {string} */
function minus(amount) {
  return amount === "0" || amount === "0 B" ? "0" : `−${amount}`;
}

// @ts-check
/** Pages of a list that the kernel holds, and texts with parts of them marked. */
import { element, formatCount } from "./common.js";
import { setShown, setText } from "./dom.js";

export const PAGE = 5; // entries

/** Earlier, later, and which entries are shown. */
export class Pager {
  /** @param {(start: number) => void} onTurn */
  constructor(onTurn) {
    this.start = 0;
    this.said = element("span", { class: "muted", role: "status" });
    this.back = element("button", { type: "button", class: "data-button", text: "Earlier", onclick: () => onTurn(Math.max(0, this.start - PAGE)) });
    this.next = element("button", { type: "button", class: "data-button", text: "Later", onclick: () => onTurn(this.start + PAGE) });
    this.node = element("div", { class: "data-pager" }, this.back, this.next, this.said);
  }

  /** @param {number} start @param {number} count @param {number} total */
  show(start, count, total) {
    this.start = start;
    this.back.disabled = start === 0;
    this.next.disabled = start + count >= total;
    setShown(this.node, total > 0);
    setText(this.said, `${formatCount(start + 1)} to ${formatCount(start + count)} of ${formatCount(total)}`);
  }
}

/** @param {[string, boolean][]} parts @returns {HTMLElement} */
export function markedText(parts) {
  const pieces = parts.map(([text, marked]) => (marked ? element("mark", { text }) : text));
  return element("pre", { class: "data-text", dir: "auto", tabindex: 0 }, pieces.length ? pieces : element("span", { class: "muted", text: "(empty)" }));
}

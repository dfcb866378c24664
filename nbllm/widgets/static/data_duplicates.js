// @ts-check
/** Removed duplicates beside what they repeat, what differs marked. */
import { element, formatNumber } from "./common.js";
import { setShown, setText } from "./dom.js";
import { markedText, PAGE, Pager } from "./data_pages.js";

export class DuplicateList {
  /** @param {(start: number, count: number) => void} ask */
  constructor(ask) {
    this.ask = ask;
    this.stale = true;
    this.pager = new Pager((start) => ask(start, PAGE));
    this.empty = element("p", { class: "muted", hidden: true, text: "No duplicates were removed." });
    this.note = element("p", { class: "muted" });
    this.list = element("div");
    this.node = element("div", null, this.note, this.pager.node, this.empty, this.list);
  }

  /** @param {number} total */
  setTotal(total) {
    setShown(this.empty, total === 0);
    setShown(this.note, total > 0);
    setText(this.note, "Removed documents beside what they repeat, the least alike first. Words that the other has not are marked.");
    this.pager.show(0, Math.min(PAGE, total), total);
    this.total = total;
  }

  /** The list is looked at: fetch what is not there yet. */
  open() {
    if (this.stale && this.total) this.ask(0, PAGE);
    this.stale = false;
  }

  /** @param {{start: number, total: number, entries: any[]}} page */
  show({ start, total, entries }) {
    this.pager.show(start, entries.length, total);
    this.list.replaceChildren(...entries.map(({ id, partner, step, jaccard, removed, kept }) =>
      element("article", { class: "data-document" },
        element("div", { class: "data-why" }, element("span", { class: "data-reason", text: step }),
          element("span", { text: jaccard === null ? "similarity not measured" : `Jaccard ${formatNumber(jaccard, 4)}` })),
        element("div", { class: "data-pair" },
          element("div", null, element("div", { class: "bad", text: `removed ${id}` }), markedText(removed)),
          element("div", null, element("div", { class: "good", text: `repeats ${partner}` }),
            kept.length ? markedText(kept) : element("p", { class: "muted", text: "It was removed as well, and is not quoted." }))))));
  }
}

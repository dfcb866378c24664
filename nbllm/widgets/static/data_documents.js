// @ts-check
/** Documents that were kept, and what each rule removed, with the reason marked in the text. */
import { element, formatCount } from "./common.js";
import { setShown, setText } from "./dom.js";
import { markedText, PAGE, Pager } from "./data_pages.js";

const CHANGES = ["newly kept", "newly dropped"];

export class DocumentList {
  /** @param {(name: string, start: number, count: number) => void} ask */
  constructor(ask) {
    this.ask = ask;
    this.name = "kept";
    this.stale = true;
    this.choice = element("select", { "aria-label": "Which documents", onchange: () => this.choose(this.choice.value) });
    this.pager = new Pager((start) => ask(this.name, start, PAGE));
    this.empty = element("p", { class: "muted", hidden: true });
    this.list = element("div");
    this.node = element("div", null, element("div", { class: "data-bar-top" }, this.choice, this.pager.node), this.empty, this.list);
  }

  /** @param {[string, number][]} lists with how many entries each has */
  setLists(lists) {
    const named = lists.map(([name, count]) => element("option", { value: name, text: `${name === "kept" ? "kept" : `removed by ${name}`} (${formatCount(count)})` }));
    this.changes = CHANGES.map((name) => element("option", { value: name, text: `${name} at the thresholds set here`, disabled: true }));
    this.choice.replaceChildren(...named, ...this.changes);
    this.choice.value = this.name;
  }

  /** @param {boolean} moved whether thresholds are not those of the preparation */
  setMoved(moved) {
    for (const option of this.changes ?? []) option.disabled = !moved;
    if (CHANGES.includes(this.name)) {
      if (moved) this.ask(this.name, 0, PAGE);
      else this.choose("kept");
    }
  }

  /** The list is looked at: fetch what is not there yet. */
  open() {
    if (this.stale) this.ask(this.name, 0, PAGE);
    this.stale = false;
  }

  /** @param {string} name */
  choose(name) {
    this.name = this.choice.value = name;
    this.stale = false;
    this.ask(name, 0, PAGE);
  }

  /** @param {{name: string, start: number, total: number, entries: {id: string, why: string[], parts: [string, boolean][], cut: boolean}[]}} page */
  show({ start, total, entries }) {
    setShown(this.empty, total === 0);
    setText(this.empty, "There is none.");
    this.pager.show(start, entries.length, total);
    this.list.replaceChildren(...entries.map(({ id, why, parts, cut }) =>
      element("article", { class: "data-document" },
        element("div", { class: "data-why" },
          why.map((each, i) => element("span", { class: i ? "data-reason muted" : "data-reason bad", text: each })),
          element("span", { class: "muted data-id", text: id })),
        markedText(parts), cut && element("p", { class: "muted", text: "Only the beginning is shown." }))));
  }
}

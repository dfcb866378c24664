// @ts-check
/** Whose text each step removed: its share in each group, with intervals. */
import { element, formatCount, formatNumber } from "./common.js";

/**
 * @typedef {{step: string, axis: string, group: string, documents: number, removed: number, interval: [number, number],
 *   rest: number, ratio: number, between: [number, number], differs: boolean}} AuditRow
 */

export class AuditTable {
  /** @param {() => void} ask */
  constructor(ask) {
    this.ask = ask;
    this.stale = true;
    this.node = element("div", null, element("p", { class: "muted", text: "Counting…" }));
  }

  /** The table is looked at: fetch it if it is not there yet. */
  open() {
    if (this.stale) this.ask();
    this.stale = false;
  }

  /** @param {{note: string, rows: AuditRow[]}} audit note: what was compared, or why nothing could be */
  show({ note, rows }) {
    const parts = [element("p", { class: rows.length ? "muted" : null, text: note })];
    if (rows.length) {
      const header = ["step", "group", "documents", "removed (95 % interval)", "of others", "ratio (95 % interval)"];
      parts.push(element("div", { class: "data-scroll" }, element("table", { class: "data-steps" },
        element("thead", null, element("tr", null, header.map((name, i) => element("th", { scope: "col", class: i > 1 ? "number" : null, text: name })))),
        element("tbody", null, rows.map((row) => element("tr", { class: row.differs ? "data-differs" : null },
          element("td", { text: row.step }), element("td", { text: `${row.group} (${row.axis})` }),
          element("td", { class: "number", text: formatCount(row.documents) }),
          element("td", { class: "number", text: `${percent(row.removed / row.documents)} (${row.interval.map(percent).join(" to ")})` }),
          element("td", { class: "number", text: percent(row.rest) }),
          element("td", { class: "number", text: `${formatNumber(row.ratio, 3)} (${row.between.map((end) => formatNumber(end, 3)).join(" to ")})` })))))));
    }
    this.node.replaceChildren(...parts);
  }
}

/** @param {number} share @returns {string} */
function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

// @ts-check
/** What the ranks of a run have printed, tracebacks among them: the one that failed comes first, and is open. */
import { element } from "./common.js";
import { disclosure, keyed, setShown, setText } from "./dom.js";

/** @typedef {import("./dom.js").PanelContext} PanelContext */

export class RankOutputPart {
  /** @param {PanelContext} panel */
  constructor(panel) {
    this.panel = panel;
    this.ranks = element("div");
    this.node = element("section", { class: "panel-output", "aria-label": "Output of the ranks", hidden: true },
      element("h3", { text: "Output of the ranks" }), this.ranks);
  }

  /** @param {any} card */
  update(card) {
    setShown(this.node, card.outputs.length > 0);
    keyed(this.ranks, card.outputs, ({ rank }) => `${card.key} ${rank}`, (one) => this.#make(one), (node, { rank, failed, text }) => {
      setText(node.querySelector("summary"), failed ? `rank ${rank}, which failed first` : `rank ${rank}`);
      setText(node.querySelector("pre"), text || "It has printed nothing.");
    });
  }

  /** @param {any} output */
  #make({ rank, failed }) {
    const name = `rank ${rank}`;
    if (failed && !this.panel.ui.open.has(name)) this.panel.ui.open.set(name, true);
    return disclosure(this.panel, name, "", element("pre", { tabindex: 0, "aria-label": `Output of rank ${rank}` }));
  }
}

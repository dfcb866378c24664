// @ts-check
/** The line beside a control that shows the outcome of its requests. */
import { element } from "./common.js";
import { setAttribute, setText } from "./dom.js";
import { describeRequest, isOpen } from "./requests.js";

/** @typedef {import("./requests.js").Request} Request */

export class OutcomeLine {
  /**
   * @param {import("./dom.js").PanelContext} panel
   * @param {(request: Request) => boolean} about which requests it is about
   */
  constructor(panel, about) {
    this.panel = panel;
    this.about = about;
    this.node = element("div", { class: "panel-outcome" });
    /** A message of the panel itself, shown until the next request. @type {{text: string, run: string, after: Request | undefined} | null} */
    this.said = null;
  }

  /** @param {string} run @returns {Request | undefined} */
  newest(run) {
    return this.panel.requests.newest(run, this.about);
  }

  /** @param {string} text why no request is sent */
  say(text) {
    const run = this.panel.key;
    this.said = { text, run, after: this.newest(run) };
    this.panel.announce(text);
    this.#show(text, "bad");
  }

  /** @param {any} card @param {string} [hint] shown before anything else */
  update(card, hint = "") {
    const newest = this.newest(card.key);
    if (this.said && (this.said.run !== card.key || this.said.after !== newest || hint)) this.said = null;
    if (hint) this.#show(hint, "hint");
    else if (this.said) this.#show(this.said.text, "bad");
    else if (!newest) this.#show("", "");
    else {
      const failed = newest.phase === "refused" || newest.phase === "ended";
      this.#show(describeRequest(newest, card), isOpen(newest) ? "open" : failed ? "bad" : "good");
    }
  }

  /** @param {string} text @param {string} kind */
  #show(text, kind) {
    setText(this.node, text);
    setAttribute(this.node, "title", text || null);
    setAttribute(this.node, "class", `panel-outcome ${kind}`);
  }
}

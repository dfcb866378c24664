// @ts-check
/** The buttons that steer a run, and the line that says what became of what was asked. */
import { element } from "./common.js";
import { pushButton, setShown } from "./dom.js";
import { OutcomeLine } from "./outcome.js";
import { isLive } from "./requests.js";

/** @typedef {import("./dom.js").PanelContext} PanelContext */

const ABOUT = new Set(["pause", "resume", "stop", "save", "evaluate", "start_again"]);
const ENDED = {
  finished: "has finished; a fork can continue from it",
  replayed: "is a replay that has ended; a fork can continue from it",
  stopped: "was stopped; Resume continues from its newest checkpoint",
  failed: "has failed; Resume continues from its newest good checkpoint",
  lost: "is lost; Resume continues from its newest good checkpoint",
};

/** @param {any} card @param {string} action @returns {string} why it cannot be asked now; "": it can */
export function blockedReason(card, action) {
  if (Object.hasOwn(card.cannot, action)) return String(card.cannot[action]);
  if (action === "start_again" || action === "fork") return "";
  const ended = /** @type {Record<string, string>} */ (ENDED)[card.state];
  return isLive(card) ? "" : `${card.name} ${ended ?? `is ${card.state}`}.`;
}

export class ButtonsPart {
  /** @param {PanelContext} panel */
  constructor(panel) {
    this.panel = panel;
    this.line = new OutcomeLine(panel, ({ action }) => ABOUT.has(action));
    const { line } = this;
    this.asking = false;
    const press = (/** @type {string} */ action) => () => panel.ask(action);
    this.primary = pushButton(panel, { line, label: "Pause", shape: "pause", class: "primary hold", press: () => this.toggle() });
    this.stop = pushButton(panel, { line, label: "Stop", shape: "stop", press: () => this.#ask(true) });
    this.save = pushButton(panel, { line, label: "Save", shape: "save", press: press("save") });
    this.evaluate = pushButton(panel, { line, label: "Evaluate", shape: "evaluate", press: press("evaluate") });
    const stopNow = pushButton(panel, { line, label: "Stop now", shape: "stop", class: "danger", press: () => {
      this.#ask(false);
      panel.ask("stop");
    } });
    const keep = pushButton(panel, { line, label: "Keep going", press: () => this.#ask(false) });
    this.sure = stopNow.node;
    this.question = element(
      "span",
      { class: "panel-question", role: "group", "aria-label": "Stop the run?", hidden: true,
        onkeydown: (/** @type {KeyboardEvent} */ event) => event.key === "Escape" && this.#ask(false) },
      stopNow.node, keep.node,
    );
    this.keys = element("span", { class: "panel-keys muted", "aria-hidden": "true", text: "keys: p s e" });
    this.node = element(
      "div",
      { class: "panel-controls" },
      element(
        "div",
        { class: "panel-buttons", role: "toolbar", "aria-label": "Steer the run" },
        this.primary.node, this.stop.node, this.question, this.save.node, this.evaluate.node, this.keys,
      ),
      line.node,
    );
    this.card = /** @type {any} */ (null);
  }

  /** Pause a run that goes, resume one that is held or has ended. */
  toggle() {
    const { state } = this.card;
    if (state === "paused") this.panel.ask("resume");
    else if (isLive(this.card)) this.panel.ask("pause");
    else this.panel.ask("start_again");
  }

  /** @param {any} card */
  update(card) {
    if (this.card && this.card.key !== card.key && this.asking) this.#ask(false);
    this.card = card;
    const { requests } = this.panel;
    const again = ["stopped", "failed", "lost"].includes(card.state);
    const action = again ? "start_again" : card.state === "paused" ? "resume" : "pause";
    this.primary.name(action === "pause" ? "Pause" : "Resume", action === "pause" ? "pause" : "play");
    for (const [button, named] of /** @type {[any, string][]} */ ([
      [this.primary, action], [this.stop, "stop"], [this.save, "save"], [this.evaluate, "evaluate"],
    ])) {
      button.block(blockedReason(card, named), requests.isPending(card.key, named));
    }
    if (this.asking && !isLive(card)) this.#ask(false);
    this.line.update(card);
  }

  /** @param {boolean} asking whether to stop */
  #ask(asking) {
    const inside = this.question.contains(document.activeElement);
    this.asking = asking;
    setShown(this.stop.node, !asking);
    setShown(this.question, asking);
    if (asking) this.sure.focus();
    else if (inside) this.stop.node.focus();
  }
}

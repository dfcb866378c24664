// @ts-check
/** What has happened to a run: its rules, its warnings, and the log of all actions. */
import { element, formatCount } from "./common.js";
import { blockedReason } from "./controls.js";
import { clock, disclosure, keyed, setAttribute, setShown, setText } from "./dom.js";
import { OutcomeLine } from "./outcome.js";
import { isOpen } from "./requests.js";

/** @typedef {import("./dom.js").PanelContext} PanelContext */

const FEW = 8; // actions and warnings that are shown at once

export class LogPart {
  /** @param {PanelContext} panel */
  constructor(panel) {
    this.panel = panel;
    this.line = new OutcomeLine(panel, ({ action }) => action === "rule");
    this.card = /** @type {any} */ (null);
    this.rules = element("div", { class: "panel-rules" });
    this.ruled = element("section", { "aria-label": "Rules", hidden: true }, element("h3", { text: "Rules" }), this.rules, this.line.node);
    this.warnings = element("div");
    this.moreWarnings = element("p", { class: "muted" });
    this.warned = element("section", { "aria-label": "Warnings", hidden: true }, element("h3", { text: "Warnings" }), this.warnings, this.moreWarnings);
    this.head = element("h3", { text: "Actions" });
    this.body = element("tbody");
    this.none = element("p", { class: "muted", text: "No actions yet." });
    const header = ["step", "action", "by", "outcome", "when"].map((text, i) =>
      element("th", { scope: "col", class: i === 0 ? "number" : null, text }),
    );
    this.table = element("div", { class: "nbllm-scroll panel-log", tabindex: 0, role: "region", "aria-label": "Actions" },
      element("table", null, element("thead", null, element("tr", null, header)), this.body));
    this.rest = disclosure(panel, "log", "Show all");
    this.node = element("div", { class: "panel-history" }, this.ruled, this.warned, this.head, this.none, this.table, this.rest);
  }

  /** @param {any} card */
  update(card) {
    this.card = card;
    this.#showRules(card);
    const warnings = [...card.warnings].reverse().slice(0, FEW);
    setShown(this.warned, warnings.length > 0);
    keyed(this.warnings, warnings, (one) => `${one.step} ${one.time} ${one.text}`, ({ step, text, time }) =>
      element("div", { class: "run-note", title: clock(time) }, `Step ${formatCount(step)}: ${text}`));
    const earlier = card.num_warnings - warnings.length;
    setText(this.moreWarnings, earlier > 0 ? `${formatCount(earlier)} earlier: run.events("warning")` : "");
    setShown(this.moreWarnings, earlier > 0);
    this.#showActions(card);
  }

  /** @param {any} card */
  #showActions(card) {
    const actions = [...card.actions].reverse();
    const all = this.rest.open;
    setShown(this.none, actions.length === 0);
    setShown(this.table, actions.length > 0);
    setShown(this.rest, actions.length > FEW);
    setText(this.rest.firstChild, all ? "Show only the newest" : `Show ${actions.length - FEW} earlier`);
    const older = card.num_actions - actions.length;
    setText(this.head, older > 0 && all ? `Actions, the newest ${actions.length} of ${formatCount(card.num_actions)}` : "Actions");
    keyed(this.body, all ? actions : actions.slice(0, FEW), keyOfAction, makeAction, (row, action) =>
      setAttribute(row, "class", action.effective === false && action.outcome === "applied" ? "superseded" : null));
  }

  /** @param {any} card */
  #showRules(card) {
    setShown(this.ruled, card.rules.length > 0);
    this.line.update(card);
    keyed(this.rules, card.rules, ({ name }) => name, ({ name }) => this.#makeRule(name), (node, rule) => {
      const [input, said] = [node.querySelector("input"), node.querySelector(".rule-fired")];
      const pending = this.panel.requests.newest(card.key, ({ action, args }) => action === "rule" && args.name === rule.name);
      if (!isOpen(pending)) input.checked = Boolean(rule.on);
      const blocked = blockedReason(card, "rule");
      setAttribute(input, "aria-disabled", blocked ? "true" : null);
      setAttribute(input, "aria-description", blocked || null);
      setAttribute(node, "title", blocked || null);
      setText(node.querySelector(".rule-when"), `when ${rule.when}`);
      setText(node.querySelector(".rule-do"), doText(rule.do));
      const last = rule.last_step == null ? "" : `, last at step ${formatCount(rule.last_step)}`;
      setText(said, isOpen(pending) ? "asked…" : rule.fired ? `fired ${formatCount(rule.fired)}×${last}` : "not fired yet");
    });
  }

  /** @param {string} name */
  #makeRule(name) {
    const { panel } = this;
    const input = element("input", { type: "checkbox", role: "switch", "aria-label": `Rule ${name}`, onchange: panel.guarded(() => {
      const on = input.checked;
      input.checked = !on; // until the run has said so
      const blocked = blockedReason(this.card, "rule");
      if (blocked) return this.line.say(blocked);
      panel.ask("rule", { name, on });
      input.checked = on;
    }) });
    return element("label", { class: "panel-rule" }, input, element("b", null, element("bdi", { text: name })),
      element("code", { class: "rule-when" }), element("code", { class: "rule-do" }), element("span", { class: "rule-fired muted" }));
  }
}

/** @param {any} done @returns {string} */
function doText(done) {
  return typeof done === "string" ? done : JSON.stringify(done);
}

/** @param {any} action @returns {string} */
function keyOfAction({ id, step, time, action, text }) {
  return `${id} ${step} ${time} ${action} ${text}`;
}

/** @param {any} action */
function makeAction({ step, text, action, actor, outcome, reason, time }) {
  const said = reason ? `${outcome}: ${reason}` : outcome;
  return element(
    "tr",
    null,
    element("td", { class: "number", text: formatCount(step) }),
    element("td", { class: "log-what" }, element("bdi", { text: text || action })),
    element("td", null, element("bdi", { text: actor })),
    element("td", { class: outcome === "refused" ? "bad" : null }, element("bdi", { text: said })),
    element("td", { class: "log-when", title: time == null ? null : new Date(time * 1000).toString(), text: clock(time) }),
  );
}

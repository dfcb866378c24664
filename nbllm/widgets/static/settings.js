// @ts-check
/** The settings that can be changed while the loop runs, and the frozen parts of the model. */
import { element } from "./common.js";
import { blockedReason } from "./controls.js";
import { disclosure, draftField, keyed, onAnswers, pushButton, setAttribute, setShown, setText, typedNumber } from "./dom.js";
import { OutcomeLine } from "./outcome.js";
import { plainNumber } from "./tuning.js";

/** @typedef {import("./dom.js").PanelContext} PanelContext */

export class SettingsPart {
  /** @param {PanelContext} panel */
  constructor(panel) {
    this.panel = panel;
    const about = ["freeze", "unfreeze"];
    this.line = new OutcomeLine(panel, ({ action, args }) => about.includes(action) || (action === "set" && !("lr" in args)));
    const { line } = this;
    this.rows = element("div", { class: "panel-settings" });
    this.frozen = element("span", { class: "panel-frozen" });
    const input = element("input", { type: "text", class: "panel-pattern", placeholder: "embedding layers[:2]", "aria-label": "Parts to freeze: by name, where * stands for anything, or layers[:2]; ! before one freezes all others",
      autocomplete: "off", spellcheck: "false", onkeydown: panel.guarded((event) => event.key === "Enter" && this.freeze.press()) });
    this.patterns = draftField(panel, "freeze", input);
    this.freeze = pushButton(panel, { line, label: "Freeze", press: () => this.#freeze() });
    this.freezing = element(
      "div",
      { class: "panel-setting" },
      element("span", { class: "setting-name" }, "frozen parts", element("small", { class: "muted", text: "They keep their weights." })),
      this.frozen,
      element("span", { class: "setting-ask" }, input, this.freeze.node),
    );
    this.node = disclosure(panel, "settings", "More settings", this.rows, this.freezing, line.node);
    this.card = /** @type {any} */ (null);
    this.destroy = onAnswers(panel, (request) => this.#answered(request));
    /** @type {Map<string, any>} fields by setting */
    this.fields = new Map();
  }

  /** @param {any} card */
  update(card) {
    this.card = card;
    this.line.update(card);
    const settings = card.settings.filter((/** @type {any} */ { name, kind }) => name !== "lr" && kind !== "patterns");
    keyed(this.rows, settings, ({ name }) => name, ({ name }) => this.#make(name), (_, setting) => this.#show(setting));
    const blocked = blockedReason(card, "freeze");
    setShown(this.freezing, !Object.hasOwn(card.cannot, "freeze") || card.frozen.length > 0);
    setShown(this.node, settings.length > 0 || !this.freezing.hidden);
    this.freeze.block(blocked, this.panel.requests.isPending(card.key, "freeze"));
    this.patterns.show(card.key);
    keyed(this.frozen, card.frozen, String, (pattern) => this.#thaw(pattern));
    setAttribute(this.frozen, "data-none", card.frozen.length ? null : "none");
  }

  /** @param {string} name */
  #make(name) {
    const { panel } = this;
    const input = element("input", { type: "text", inputmode: "decimal", class: "panel-number", "aria-label": `${name} to set`, autocomplete: "off", spellcheck: "false",
      onkeydown: panel.guarded((event) => event.key === "Enter" && set.press()) });
    const set = pushButton(panel, { line: this.line, label: "Set", press: () => this.#send(name) });
    setAttribute(set.node, "aria-label", `Set ${name}`);
    const [title, now, help, range] = ["span", "b", "small", "small"].map((tag) => element(tag));
    this.fields.set(name, { field: draftField(panel, `set ${name}`, input), set, title, now, help, range });
    help.className = range.className = "muted";
    return element(
      "div",
      { class: "panel-setting" },
      element("span", { class: "setting-name" }, title, help),
      element("span", { class: "setting-now" }, now, range),
      element("span", { class: "setting-ask" }, input, set.node),
    );
  }

  /** @param {any} setting */
  #show({ name, unit, help, range, value }) {
    const { field, set, title, now, help: helped, range: ranged } = this.fields.get(name);
    const { card } = this;
    setText(title, name);
    setText(helped, help);
    setText(now, `${value == null ? "–" : plainNumber(value, 6)}${unit ? ` ${unit}` : ""}`);
    setText(ranged, range);
    field.show(card.key);
    set.block(blockedReason(card, "set"));
  }

  /** @param {string} name */
  #send(name) {
    const value = typedNumber(this.fields.get(name).field.node.value);
    if (Number.isFinite(value)) this.panel.ask("set", { [name]: value });
    else this.line.say(`${name} must be a number.`);
  }

  #freeze() {
    const patterns = this.patterns.node.value.split(/[\s,]+/).filter(Boolean);
    if (patterns.length) this.panel.ask("freeze", { patterns });
    else this.line.say("Name the parts to freeze, such as layers[:2] for the first two layers.");
  }

  /** A tag with a button that undoes it: "!" before a pattern takes away what others freeze. @param {string} pattern */
  #thaw(pattern) {
    const { panel } = this;
    const [action, label, name] = pattern.startsWith("!") ? ["freeze", "Freeze", pattern.slice(1)] : ["unfreeze", "Unfreeze", pattern];
    const press = panel.guarded(() => panel.ask(action, { patterns: [name] }));
    return element("span", { class: "panel-tag" }, element("bdi", { text: pattern }),
      element("button", { type: "button", text: "×", title: label, "aria-label": `${label} ${name}`, onclick: press }));
  }

  /** Forget what was typed once it is applied. @param {import("./requests.js").Request} request */
  #answered({ run, action, args, phase }) {
    if (phase !== "applied" || run !== this.card?.key) return;
    if (action === "freeze" && this.patterns.typed?.split(/[\s,]+/).filter(Boolean).join() === args.patterns.join()) this.patterns.clear();
    if (action !== "set") return;
    for (const [name, value] of Object.entries(args)) {
      const field = this.fields.get(name)?.field;
      if (field && typedNumber(field.typed ?? "") === value) field.clear();
    }
  }
}

// @ts-check
/** The learning rate: what is applied, what is asked, and the field, slider and buttons that ask. */
import { element, formatNumber } from "./common.js";
import { blockedReason } from "./controls.js";
import { draftField, onAnswers, pushButton, setAttribute, setShown, setText, typedNumber } from "./dom.js";
import { OutcomeLine } from "./outcome.js";
import { isOpen } from "./requests.js";

/** @typedef {import("./dom.js").PanelContext} PanelContext */

export class LearningRatePart {
  /** @param {PanelContext} panel */
  constructor(panel) {
    this.panel = panel;
    this.line = new OutcomeLine(panel, ({ action, args }) => action === "set" && "lr" in args);
    const { line } = this;
    this.applied = element("b");
    this.effective = element("span", { class: "muted" });
    const input = element("input", { type: "text", inputmode: "decimal", class: "panel-number", "aria-label": "Learning rate to set",
      autocomplete: "off", spellcheck: "false",
      onkeydown: panel.guarded((event) => event.key === "Enter" && this.set.press()) });
    this.field = draftField(panel, "lr", input, () => this.#edited());
    this.slider = element("input", { type: "range", min: -1, max: 1, step: 0.01, "aria-label": "Learning rate, from a tenth to ten times the current setting",
      oninput: panel.guarded(() => this.#slide()) });
    this.halve = pushButton(panel, { line, label: "½×", class: "small", press: () => this.#scale(0.5) });
    this.double = pushButton(panel, { line, label: "2×", class: "small", press: () => this.#scale(2) });
    setAttribute(this.halve.node, "aria-label", "Halve the learning rate");
    setAttribute(this.double.node, "aria-label", "Double the learning rate");
    this.set = pushButton(panel, { line, label: "Set", class: "set", press: () => this.#send() });
    this.node = element(
      "section",
      { class: "panel-box panel-lr", "aria-label": "Learning rate" },
      element("div", { class: "panel-box-head" }, element("h3", { text: "Learning rate" }), element("span", { class: "panel-value" }, this.applied, " ", this.effective)),
      element("div", { class: "panel-row" }, input, this.halve.node, this.double.node, this.set.node),
      element("div", { class: "panel-slider" }, element("span", { class: "muted", text: "÷10", "aria-hidden": "true" }), this.slider, element("span", { class: "muted", text: "×10", "aria-hidden": "true" })),
      line.node,
    );
    this.card = /** @type {any} */ (null);
    this.destroy = onAnswers(panel, (request) => this.#answered(request));
  }

  /** What is set now; the schedule multiplies it. @returns {any} */
  get setting() {
    return this.card?.settings.find((/** @type {any} */ setting) => setting.name === "lr");
  }

  /** @param {any} card */
  update(card) {
    this.card = card;
    const { setting } = this;
    setShown(this.node, Boolean(setting));
    if (!setting) return;
    const now = setting.value ?? card.facts.lr;
    setText(this.applied, formatNumber(now, 3));
    const lr = card.facts.lr;
    const differs = lr != null && now != null && Math.abs(lr - now) > 1e-3 * Math.abs(now);
    setText(this.effective, differs ? `set; ${formatNumber(lr, 3)} ${card.scheduled ? "by schedule now" : "in the last step"}` : "applied");
    this.field.show(card.key, now == null ? "" : plainNumber(now));
    setAttribute(this.field.node, "title", [setting.help, setting.range].filter(Boolean).join(" Range: "));
    const blocked = blockedReason(card, "set");
    for (const button of [this.set, this.halve, this.double]) button.block(blocked);
    this.#edited();
  }

  /** Show the typed value on the slider. */
  #edited() {
    const { value } = this.setting ?? {};
    const typed = typedNumber(this.field.node.value);
    const wrong = this.field.typed !== null && !Number.isFinite(typed);
    setAttribute(this.field.node, "aria-invalid", wrong ? "true" : null);
    this.slider.disabled = !(value > 0);
    if (document.activeElement !== this.slider || !this.slider.matches(":active")) {
      const place = value > 0 && typed > 0 ? Math.max(-1, Math.min(1, Math.log10(typed / value))) : 0;
      this.slider.value = String(place);
    }
    setAttribute(this.slider, "aria-valuetext", formatNumber(Number.isFinite(typed) ? typed : value, 3));
    const news = Number.isFinite(typed) && typed !== value;
    this.set.node.classList.toggle("primary", news);
    this.#say();
  }

  #slide() {
    const { value } = this.setting ?? {};
    if (!(value > 0)) return;
    const asked = Number(this.slider.value);
    this.field.type(Math.abs(asked) < 0.005 ? plainNumber(value) : plainNumber(value * 10 ** asked));
    this.#edited();
  }

  /** @param {number} factor */
  #scale(factor) {
    const typed = typedNumber(this.field.node.value);
    const base = Number.isFinite(typed) ? typed : this.setting?.value;
    if (base == null) return;
    this.field.type(plainNumber(base * factor, 6));
    this.#edited();
  }

  #send() {
    const typed = typedNumber(this.field.node.value);
    if (!Number.isFinite(typed)) {
      this.line.say("The learning rate must be a number, such as 3e-4.");
      this.field.node.focus();
      return;
    }
    this.panel.ask("set", { lr: typed });
  }

  #say() {
    if (!this.card) return;
    const typed = typedNumber(this.field.node.value);
    const wrong = this.field.typed !== null && !Number.isFinite(typed);
    const news = this.field.typed !== null && typed !== this.setting?.value && !isOpen(this.line.newest(this.card.key));
    const refused = this.line.newest(this.card.key);
    const asked = refused?.phase === "refused" && refused.args.lr === typed;
    this.line.update(this.card, wrong ? "Not a number." : news && !asked ? "Press Enter or Set to apply it." : "");
  }

  /** Forget what was typed once it is applied. @param {import("./requests.js").Request} request */
  #answered({ run, action, args, phase }) {
    if (action !== "set" || phase !== "applied" || run !== this.card?.key) return;
    if (typedNumber(this.field.typed ?? "") === args.lr) this.field.clear();
  }
}

/** @param {number} value @param {number} [digits] @returns {string} as a user would type it */
export function plainNumber(value, digits = 3) {
  return value === Number(value.toPrecision(digits)) || digits > 3 ? String(Number(value.toPrecision(12))) : String(Number(value.toPrecision(digits)));
}

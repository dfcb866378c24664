// @ts-check
/** The settings of the answers: system prompt, temperature, top-p, length, seed. */
import { element } from "./common.js";

const FIELDS = /** @type {const} */ ([
  ["temperature", "Temperature", "0: always the likeliest token; 1: the model's own distribution"],
  ["top_p", "Top-p", "Only the likeliest tokens that together have this probability; 1: all"],
  ["max_new_tokens", "Maximum tokens", "An answer is cut off there"],
  ["seed", "Seed", "The same seed and conversation give the same answer; empty: another each time"],
]);

export class ChatControls {
  /** @param {() => void} changed called when the user has changed one */
  constructor(changed) {
    /** @type {Map<string, any>} */
    this.fields = new Map();
    /** What the kernel told last. @type {Record<string, string>} */
    this.known = {};
    const boxes = FIELDS.map(([name, label, title]) => {
      const field = element("input", {
        type: "text", inputmode: "decimal", class: "chat-number", autocomplete: "off", title, onchange: changed,
        placeholder: name === "seed" ? "random" : null,
      });
      this.fields.set(name, field);
      return element("label", { class: "chat-control", title }, element("span", { text: label }), field);
    });
    const system = element("textarea", { rows: 2, dir: "auto", placeholder: "None: the template's own, if it has one", onchange: changed });
    this.fields.set("system", system);
    this.node = element(
      "details",
      { class: "chat-details" },
      element("summary", { text: "System prompt and sampling" }),
      element("label", { class: "chat-control chat-system" }, element("span", { text: "System prompt" }), system),
      element("div", { class: "chat-controls" }, boxes),
    );
  }

  /** Show what the kernel says, but leave what a person is typing. @param {Record<string, string>} controls */
  show(controls) {
    for (const [name, field] of this.fields) {
      if (field.value === (this.known[name] ?? "") || field.value === controls[name]) field.value = controls[name];
    }
    this.known = controls;
  }

  /**
   * As they are typed; what is still empty because the kernel has said nothing yet is left to it.
   * @returns {Record<string, string>}
   */
  get values() {
    const said = Array.from(this.fields, ([name, field]) => [name, field.value]).filter(([name, value]) => name in this.known || value);
    return Object.fromEntries(said);
  }
}

// @ts-check
/** Samples: the newest, older ones, and a field for the user's own prompt. */
import { element, formatCount } from "./common.js";
import { blockedReason } from "./controls.js";
import { clock, disclosure, draftField, keyed, pushButton, setAttribute, setShown, setText, typedNumber } from "./dom.js";
import { OutcomeLine } from "./outcome.js";

/** @typedef {import("./dom.js").PanelContext} PanelContext */

const USUAL_TOKENS = "60";

export class SamplesPart {
  /** @param {PanelContext} panel */
  constructor(panel) {
    this.panel = panel;
    this.line = new OutcomeLine(panel, ({ action }) => action === "sample");
    const { line } = this;
    this.card = /** @type {any} */ (null);
    const enter = panel.guarded((event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.button.press();
    });
    const prompt = element("textarea", { rows: 1, class: "panel-prompt", placeholder: "Your own prompt; Enter samples", "aria-label": "Prompt", spellcheck: "false", dir: "auto", onkeydown: enter });
    const tokens = element("input", { type: "text", inputmode: "numeric", class: "panel-tokens", "aria-label": "Maximum number of tokens", autocomplete: "off", onkeydown: enter });
    this.prompt = draftField(panel, "prompt", prompt, () => this.#grow());
    this.tokens = draftField(panel, "tokens", tokens);
    this.button = pushButton(panel, { line, label: "Sample", press: () => this.#send() });
    this.newest = element("div", { class: "panel-newest" });
    this.count = element("span");
    this.older = element("div");
    this.rest = disclosure(panel, "samples", this.count, this.older);
    this.node = element(
      "section",
      { class: "panel-samples", "aria-label": "Samples" },
      element("h3", { text: "Samples" }),
      element("div", { class: "panel-row panel-ask" }, prompt, element("label", { class: "panel-tokens-label muted" }, tokens, " tokens"), this.button.node),
      line.node, this.newest, this.rest,
    );
  }

  /** @param {any} card */
  update(card) {
    this.card = card;
    this.prompt.show(card.key);
    this.tokens.show(card.key, USUAL_TOKENS);
    this.#grow();
    this.button.block(blockedReason(card, "sample"), this.panel.requests.isPending(card.key, "sample"));
    this.line.update(card);
    const samples = [...card.samples].reverse();
    keyed(this.newest, samples.slice(0, 1), keyOfSample, makeSample);
    setText(this.count, `${samples.length - 1} older`);
    setShown(this.rest, samples.length > 1);
    if (this.rest.open) keyed(this.older, samples.slice(1), keyOfSample, makeSample);
  }

  /** As high as what is typed, up to some lines. */
  #grow() {
    const { node } = this.prompt;
    const lines = String(Math.min(6, node.value.split("\n").length));
    setAttribute(node, "rows", lines);
  }

  #send() {
    const most = typedNumber(this.tokens.node.value);
    if (!Number.isInteger(most) || most < 1) return this.line.say("The number of tokens must be a whole number, 1 or more.");
    this.panel.ask("sample", { prompt: this.prompt.node.value, max_new_tokens: most });
  }
}

/** @param {any} sample @returns {string} */
function keyOfSample({ step, time, id, prompt }) {
  return `${step} ${time} ${id} ${prompt}`;
}

/** @param {any} sample */
function makeSample({ step, time, actor, prompt, text, reference }) {
  const asked = /^(person|rule:|agent:)/.test(actor ?? "") ? `, asked by ${actor}` : "";
  return element(
    "figure",
    { class: "panel-sample" },
    element("figcaption", { class: "muted", text: `step ${formatCount(step)}${asked}, ${clock(time)}` }),
    reference == null
      ? written(prompt, text)
      : element(
          "div",
          { class: "panel-beside" },
          element("div", null, element("small", { class: "muted", text: "the run" }), written(prompt, text)),
          element("div", null, element("small", { class: "muted", text: "the reference" }), written(prompt, reference)),
        ),
  );
}

/** @param {string} prompt @param {string} text */
function written(prompt, text) {
  return element("pre", null, element("b", { text: prompt }), element("span", { text }));
}

// @ts-check
/** Rewinding and forking: the slider over checkpoints, and the fields of a fork. */
import { element, formatBytes, formatCount, visibleText } from "./common.js";
import { blockedReason } from "./controls.js";
import { clock, draftField, keyed, onAnswers, pushButton, setAttribute, setShown, setText, typedNumber } from "./dom.js";
import { OutcomeLine } from "./outcome.js";
import { plainNumber } from "./tuning.js";

/** @typedef {import("./dom.js").PanelContext} PanelContext */

const USUAL_CHANGES = ["lr", "steps"];

export class BranchingPart {
  /** @param {PanelContext} panel */
  constructor(panel) {
    this.panel = panel;
    this.line = new OutcomeLine(panel, ({ action }) => action === "rewind" || action === "fork");
    const { line } = this;
    this.card = /** @type {any} */ (null);
    /** @type {any[]} checkpoints on the current branch */
    this.points = [];
    this.slider = element("input", { type: "range", min: 0, max: 0, step: 1, "aria-label": "Checkpoint", oninput: panel.guarded(() => this.#slide()) });
    this.about = element("span", { class: "panel-value muted" });
    this.rewind = pushButton(panel, { line, label: "Rewind", shape: "rewind", press: () => panel.ask("rewind", { step: this.chosen?.step }) });
    this.ends = [element("span", { class: "muted" }), element("span", { class: "muted" })];
    const input = element("input", { type: "text", class: "panel-name", "aria-label": "Name of the fork", autocomplete: "off", spellcheck: "false",
      onkeydown: panel.guarded((event) => event.key === "Enter" && this.fork.press()) });
    this.name = draftField(panel, "fork name", input);
    this.changes = element("div", { class: "panel-changes" });
    this.more = element("select", { class: "panel-more", "aria-label": "Change another setting in the fork", onchange: panel.guarded(() => this.#add()) });
    this.fork = pushButton(panel, { line, label: "Fork", shape: "fork", press: () => this.#fork() });
    this.offer = element("button", { type: "button", class: "nbllm-button small", hidden: true, onclick: panel.guarded(() => panel.focusOn(this.begun)) });
    /** The newest fork, once it is here. */
    this.begun = "";
    this.from = element("span", { class: "muted panel-from" });
    /** @type {Map<string, any>} fields by setting */
    this.fields = new Map();
    this.node = element(
      "section",
      { class: "panel-box panel-branching", "aria-label": "Checkpoints: rewind and fork" },
      element("div", { class: "panel-box-head" }, element("h3", { text: "Checkpoint" }), this.about),
      element("div", { class: "panel-slider" }, this.ends[0], this.slider, this.ends[1]),
      element(
        "div",
        { class: "panel-row panel-forking" },
        this.rewind.node,
        element("span", { class: "panel-or muted", text: "or fork as" }), input, this.fork.node,
      ),
      element("div", { class: "panel-row" }, this.from, this.changes, this.more),
      element("div", { class: "panel-answer" }, line.node, this.offer),
    );
    this.destroy = onAnswers(panel, (request) => this.#answered(request));
  }

  /** The checkpoint that the user has chosen, or the newest. */
  get chosen() {
    const step = this.panel.ui.chosen.get(this.card.key);
    return this.points.find((point) => point.step === step) ?? this.points.at(-1);
  }

  /** @param {any} card @param {Map<string, any>} cards */
  update(card, cards) {
    this.card = card;
    this.line.update(card);
    this.#offer(cards);
    const { ui, requests } = this.panel;
    this.points = card.checkpoints.filter((/** @type {any} */ point) => point.on_branch);
    if (!this.points.some(({ step }) => step === ui.chosen.get(card.key))) ui.chosen.delete(card.key);
    this.#showSlider();
    const none = this.points.length ? "" : "There is no checkpoint yet; Save makes one.";
    this.rewind.block(blockedReason(card, "rewind") || none, requests.isPending(card.key, "rewind"));
    this.fork.block(blockedReason(card, "fork") || none, requests.isPending(card.key, "fork"));
    this.name.show(card.key, freeName(card.name, cards));
    this.#showChanges();
  }

  /** Offer to steer the fork that has started; the focus stays where it is. @param {Map<string, any>} cards */
  #offer(cards) {
    const newest = this.line.newest(this.card.key);
    const fork = newest?.phase === "done" ? cards.get(newest.begun) : undefined;
    this.begun = fork?.key ?? "";
    setShown(this.offer, Boolean(fork));
    if (fork) setText(this.offer, `Steer ${fork.name}`);
  }

  #showSlider() {
    const { points, chosen, slider } = this;
    setAttribute(slider, "max", Math.max(0, points.length - 1));
    slider.disabled = points.length < 2;
    const place = String(Math.max(0, points.indexOf(chosen)));
    if (slider.value !== place) slider.value = place;
    const text = chosen ? `step ${formatCount(chosen.step)}` : "none yet";
    setAttribute(slider, "aria-valuetext", text);
    setText(this.about, chosen ? `${text} · ${formatBytes(chosen.bytes)} · ${clock(chosen.time)}` : text);
    setText(this.ends[0], points.length ? formatCount(points[0].step) : "");
    setText(this.ends[1], points.length ? formatCount(points[points.length - 1].step) : "");
    this.rewind.name(chosen ? `Rewind to ${formatCount(chosen.step)}` : "Rewind");
    setText(this.from, chosen ? `from ${formatCount(chosen.step)} with` : "with");
  }

  #slide() {
    const point = this.points[Number(this.slider.value)];
    if (point) this.panel.ui.chosen.set(this.card.key, point.step);
    this.panel.redraw();
    this.#showSlider();
  }

  #showChanges() {
    const { card, panel } = this;
    const settings = card.settings.filter((/** @type {any} */ { kind }) => kind !== "patterns");
    const extra = panel.ui.extra.get(card.key) ?? [];
    const shown = settings.filter((/** @type {any} */ { name }) => USUAL_CHANGES.includes(name) || extra.includes(name));
    keyed(this.changes, shown, ({ name }) => name, ({ name }) => this.#makeChange(name), (_, { name, value, help }) => {
      const field = this.fields.get(name);
      field.show(card.key);
      setAttribute(field.node, "placeholder", value == null ? "unchanged" : plainNumber(value, 6));
      setAttribute(field.node, "title", `${help} Empty: unchanged.`);
    });
    const rest = settings.filter((/** @type {any} */ setting) => !shown.includes(setting));
    setShown(this.more, rest.length > 0);
    keyed(this.more, [{ name: "" }, ...rest], ({ name }) => name, ({ name }) => element("option", { value: name, text: name || "+ setting" }));
  }

  /** @param {string} name */
  #makeChange(name) {
    const input = element("input", { type: "text", inputmode: "decimal", class: "panel-number", "aria-label": `${name} of the fork`, autocomplete: "off", spellcheck: "false",
      onkeydown: this.panel.guarded((event) => event.key === "Enter" && this.fork.press()) });
    this.fields.set(name, draftField(this.panel, `fork ${name}`, input));
    return element("label", { class: "panel-change" }, element("span", { text: name }), input);
  }

  #add() {
    const { extra } = this.panel.ui;
    const name = this.more.value;
    this.more.value = "";
    if (!name) return;
    extra.set(this.card.key, [...(extra.get(this.card.key) ?? []), name]);
    this.#showChanges();
    this.fields.get(name).node.focus();
  }

  #fork() {
    const name = this.name.node.value.trim();
    if (!name) return this.line.say("A fork needs a name.");
    /** @type {Record<string, number>} */
    const changes = {};
    for (const row of this.changes.children) {
      const setting = /** @type {any} */ (row).nbllmKey;
      const typed = this.fields.get(setting).typed;
      if (!typed?.trim()) continue;
      changes[setting] = typedNumber(typed);
      if (!Number.isFinite(changes[setting])) return this.line.say(`${setting} of the fork must be a number.`);
    }
    const step = this.panel.ui.chosen.get(this.card.key) ?? null;
    this.panel.ask("fork", { name, step, changes });
  }

  /** @param {import("./requests.js").Request} request */
  #answered({ run, action, args, phase }) {
    if (run !== this.card?.key) return;
    if (action === "rewind" && phase === "applied" && this.panel.ui.chosen.get(run) === args.step) this.panel.ui.chosen.delete(run);
    if (action !== "fork" || phase !== "done") return;
    if (this.name.typed?.trim() === args.name) this.name.clear();
    for (const [name, value] of Object.entries(args.changes)) {
      if (typedNumber(this.fields.get(name)?.typed ?? "") === value) this.fields.get(name).clear();
    }
  }
}

/** @param {string} name @param {Map<string, any>} cards @returns {string} one like it that no run has */
function freeName(name, cards) {
  const taken = new Set([...cards.values()].map((card) => card.name));
  const [, stem, number] = /** @type {RegExpMatchArray} */ (visibleText(name).match(/^([^]*?)(?:-(\d{1,6}))?$/));
  for (let i = Number(number ?? 1) + 1; ; i++) if (!taken.has(`${stem}-${i}`)) return `${stem}-${i}`;
}

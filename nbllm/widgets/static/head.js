// @ts-check
/** The head of a run's panel: what it is, where it stands, and what happened if it has ended. */
import { element, formatBytes, formatCount, formatDuration, formatNumber } from "./common.js";
import { clock, keyed, setAttribute, setShown, setText } from "./dom.js";
import { isLive } from "./requests.js";

const three = (/** @type {number} */ value) => (value && Math.abs(value) < 0.1 ? formatNumber(value, 3) : value.toFixed(3));

const LOSS = "loss";

/** @type {[string, string, (value: number) => string, string][]} fact, its name, how it is written, its unit (of a loss the card says it) */
const FACTS = [
  ["loss", "training loss", three, LOSS],
  ["held_out_loss", "held-out loss", three, LOSS],
  ["bits_per_byte", "held-out", three, "bits/byte"],
  ["lr", "learning rate", (value) => formatNumber(value, 3), ""],
  ["tokens", "tokens", formatCount, ""],
  ["tokens_per_second", "speed", (value) => formatCount(Math.round(value)), "tokens/s"],
  ["memory", "memory", formatBytes, ""],
  ["seconds", "trained for", formatDuration, ""],
];

/** Facts that have a place before the first step, so that the buttons below do not move under the mouse when it comes. */
const EXPECTED = new Set(["loss", "lr", "tokens", "tokens_per_second", "memory", "seconds"]);

export class HeadPart {
  constructor() {
    this.name = element("bdi", { class: "run-name" });
    this.badge = element("span", { class: "run-state" });
    this.step = element("span", { class: "run-step" });
    this.left = element("span", { class: "run-left muted" });
    this.origin = element("span", { class: "run-origin muted" });
    this.fill = element("div");
    this.bar = element("div", { class: "run-bar", role: "progressbar", "aria-label": "steps taken", "aria-valuemin": 0 }, this.fill);
    this.facts = element("dl", { class: "run-facts" });
    this.said = element("span");
    this.notice = element("div", { class: "run-note run-ended", hidden: true }, this.said);
    this.problems = element("div");
    this.node = element(
      "div",
      { class: "panel-head" },
      element("div", { class: "run-head" }, this.name, this.badge, this.step, this.left, this.origin),
      this.bar, this.facts, this.notice, this.problems,
    );
  }

  /** @param {any} card */
  update(card) {
    setText(this.name, card.name);
    setAttribute(this.name, "title", card.path);
    setText(this.badge, card.state);
    setAttribute(this.badge, "class", `run-state run-${card.state}`);
    setText(this.step, stepText(card));
    const left = card.facts.seconds_left;
    setText(this.left, card.state === "running" && left > 0 ? `about ${formatDuration(left)} left` : heardText(card));
    const replay = card.replay_of ? `replay of ${card.replay_of}` : "";
    setText(this.origin, card.parent ? `forked from ${card.parent.run} at step ${formatCount(card.parent.step)}` : replay);
    this.#progress(card);
    this.#facts(card);
    const sentence = endSentence(card);
    setShown(this.notice, sentence !== "");
    setText(this.said, sentence);
    setAttribute(this.notice, "class", `run-note run-ended run-${card.state}`);
    keyed(this.problems, card.problems ?? [], String, (text) => element("div", { class: "run-note", text }));
  }

  /** @param {any} card */
  #progress({ step, steps, state }) {
    setShown(this.bar, Boolean(steps));
    if (!steps) return;
    this.fill.style.width = `${Math.min(100, (100 * step) / steps).toFixed(2)}%`;
    setAttribute(this.bar, "aria-valuenow", Math.min(step, steps));
    setAttribute(this.bar, "aria-valuemax", steps);
    setAttribute(this.bar, "aria-valuetext", `step ${formatCount(step)} of ${formatCount(steps)}`);
    setAttribute(this.bar, "class", `run-bar run-${state}`);
  }

  /** @param {any} card */
  #facts(card) {
    const { facts, loss_unit: lossUnit } = card;
    const isWaiting = isLive(card) && facts.loss == null;
    const known = FACTS.filter(([name]) => facts[name] != null || (isWaiting && EXPECTED.has(name)));
    keyed(
      this.facts,
      known,
      ([name]) => name,
      ([, label]) => element("div", null, element("dt", { text: label }), element("dd", null, element("b"), element("span"))),
      (node, [name, , write, unit]) => {
        const value = facts[name];
        setText(node.querySelector("b"), value == null ? "–" : write(value));
        const shown = value == null ? "" : unit === LOSS ? lossUnit : unit;
        setText(node.querySelector("span"), shown ? ` ${shown}` : "");
      },
    );
  }
}

/** @param {any} card @returns {string} */
export function stepText({ step, steps }) {
  return `step ${formatCount(step)}${steps ? ` of ${formatCount(steps)}` : ""}`;
}

/** @param {any} card @returns {string} how long ago anything was heard of a run on another machine */
function heardText({ last_heard: seconds, host }) {
  return seconds == null ? "" : `heard ${formatDuration(Math.round(seconds))} ago${host ? ` from ${host}` : ""}`;
}

/** @param {any} card @returns {string} what ended the run, and what can be done; "" while it is live */
function endSentence(card) {
  const { state, step, reason, cannot } = card;
  if (card.gone) return ""; // as `problems` says
  const because = reason ? `: ${reason.replace(/\.$/, "")}.` : ".";
  const newest = card.checkpoints.filter((/** @type {any} */ one) => one.on_branch).at(-1);
  const from = newest ? `the newest good checkpoint, step ${formatCount(newest.step)}` : "the beginning: there is no checkpoint";
  const goOn = Object.hasOwn(cannot, "start_again") ? `It cannot be resumed here: ${cannot.start_again}.` : `It can continue from ${from}.`;
  if (state === "stopped") return `Stopped at step ${formatCount(step)}${because} ${goOn}`;
  if (state === "failed") return `Failed at step ${formatCount(step)}${because} ${goOn}`;
  if (state === "lost") {
    const since = card.time ? ` since ${clock(card.time)}` : "";
    return `The trainer is gone${since}${because} ${goOn}`;
  }
  return "";
}

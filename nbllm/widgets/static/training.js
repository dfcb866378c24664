// @ts-check
/** The training panel: a run seen live and steered. The entry module of nbllm.widgets.training. */
import { BranchingPart } from "./branching.js";
import { ChartsPart } from "./charts.js";
import { ChipsPart } from "./chips.js";
import { element, errorBox, suppressShortcuts } from "./common.js";
import { ButtonsPart, blockedReason } from "./controls.js";
import { LossNote } from "./connection.js";
import { setShown, setText } from "./dom.js";
import { HeadPart } from "./head.js";
import { LogPart } from "./log.js";
import { ProfilePart } from "./profile.js";
import { RankOutputPart } from "./rank_output.js";
import { RanksPart } from "./ranks.js";
import { describeRequest, isLive } from "./requests.js";
import { SamplesPart } from "./samples.js";
import { Session } from "./session.js";
import { SettingsPart } from "./settings.js";
import { LearningRatePart } from "./tuning.js";

/** @typedef {import("./dom.js").Look} Look */

const PERIOD = 100; // milliseconds between drawings, at least
const ATTEND_PERIOD = 2000; // milliseconds between messages that the user is active
const TOGETHER = 20; // milliseconds in which messages that belong together arrive: what has changed, and the points
const FIELDS = "input:not([type=range]):not([type=checkbox]), textarea, select";

/** @returns {Look} */
function freshLook() {
  return {
    focus: "", axis: "step", view: null, log: false, smoothing: 2, hidden: new Set(), open: new Map(),
    drafts: new Map(), chosen: new Map(), extra: new Map(),
  };
}

/** One view of a model: a panel on the page. */
class TrainingView {
  /** @param {Session} session @param {import("./session.js").Model} model @param {HTMLElement} host */
  constructor(session, model, host) {
    this.session = session;
    this.requests = session.requests;
    this.ui = session.lastLook ? structuredClone(session.lastLook) : freshLook();
    session.lastLook = this.ui;
    this.errors = errorBox();
    this.frame = 0;
    this.timer = 0;
    this.drawnAt = this.attended = -Infinity;
    this.state = "";
    this.#build(host);
    this.answered = (/** @type {import("./requests.js").Request} */ request) =>
      this.announce(describeRequest(request, session.store.cards.get(request.run)));
    this.requests.listeners.add(this.answered);
    this.onVisible = () => this.redraw();
    document.addEventListener("visibilitychange", this.onVisible);
    session.open(this, model);
    this.redraw();
  }

  /** @param {HTMLElement} host */
  #build(host) {
    this.loading = element("div", { class: "panel-loading muted" });
    this.spoken = element("div", { class: "panel-unseen", role: "status", "aria-live": "polite" });
    this.buttons = new ButtonsPart(this);
    this.head = new HeadPart();
    this.chips = new ChipsPart(this);
    this.charts = new ChartsPart(this);
    this.rate = new LearningRatePart(this);
    this.branching = new BranchingPart(this);
    this.settings = new SettingsPart(this);
    this.samples = new SamplesPart(this);
    this.output = new RankOutputPart(this);
    this.log = new LogPart(this);
    this.ranks = new RanksPart(this);
    this.profile = new ProfilePart(this);
    this.body = element(
      "div",
      { class: "panel-body", hidden: true },
      this.chips.node, this.head.node, this.buttons.node, this.charts.node,
      element("div", { class: "panel-boxes" }, this.rate.node, this.branching.node),
      this.settings.node, this.charts.grid, this.ranks.node, this.profile.node, this.samples.node, this.output.node, this.log.node,
    );
    this.root = element(
      "div",
      { class: "nbllm nbllm-panel nbllm-training", tabindex: 0, role: "region", "aria-label": "Training panel",
        onfocusin: suppressShortcuts, onkeydown: this.guarded((event) => this.#onKey(event)),
        onpointermove: this.guarded(() => this.#attend()) },
      this.loading, this.body, this.errors.node, this.spoken,
    );
    this.loss = new LossNote(this.root);
    this.body.before(this.loss.node);
    host.replaceChildren(this.root);
  }

  destroy() {
    cancelAnimationFrame(this.frame);
    clearTimeout(this.timer);
    document.removeEventListener("visibilitychange", this.onVisible);
    this.requests.listeners.delete(this.answered);
    this.session.close(this);
    this.session.lastLook = this.ui;
    for (const part of [this.charts, this.rate, this.branching, this.settings]) part.destroy();
    this.root.remove();
  }

  // What parts ask of the panel (PanelContext)

  /** The run that is steered. */
  get key() {
    const { store } = this.session;
    return store.cards.has(this.ui.focus) ? this.ui.focus : store.focus;
  }

  /**
   * A listener whose errors are shown.
   * @param {(event?: any) => any} listener
   */
  guarded(listener) {
    return (/** @type {any} */ event) => {
      try {
        listener(event);
      } catch (error) {
        this.onProblem(error);
      }
    };
  }

  /** @param {string} action @param {Record<string, any>} [args] */
  ask(action, args) {
    this.requests.ask(this.key, action, args);
    this.draw();
  }

  /** @param {string} text for screen readers */
  announce(text) {
    setText(this.spoken, text);
  }

  /** @param {string} key */
  focusOn(key) {
    this.ui.focus = key;
    this.ui.hidden.delete(key);
    this.draw();
  }

  /** Draw soon: before a frame, not more than ten times a second, and not while nobody can see it. */
  redraw() {
    if (this.frame || this.timer || document.hidden) return;
    const wait = Math.max(TOGETHER, this.drawnAt + PERIOD - performance.now());
    this.timer = window.setTimeout(() => {
      this.timer = 0;
      this.frame = requestAnimationFrame(() => this.draw());
    }, wait);
  }

  /** Draw now: the effect of what the user has just done shows at once. */
  draw() {
    cancelAnimationFrame(this.frame);
    clearTimeout(this.timer);
    this.frame = this.timer = 0;
    this.drawnAt = performance.now();
    this.guarded(() => this.#update())();
  }

  // What the session tells (SessionView)

  onChange() {
    this.redraw();
  }

  /** @param {unknown} problem */
  onProblem(problem) {
    this.errors.show(problem);
  }

  #update() {
    const { store, connection } = this.session;
    const card = store.cards.get(this.key);
    this.loss.show(connection, [this.body], () => lossAdvice(card));
    setShown(this.loading, !store.known || !card);
    setShown(this.body, store.known && Boolean(card));
    if (!store.known || !card) {
      const wait = "The kernel has not answered yet: it is busy with a cell, or was restarted. The run itself goes on; run the cell again to see it here.";
      setText(this.loading, store.known ? "There is no run to show." : connection.isUnanswered ? wait : "Opening the run…");
      return;
    }
    if (this.state && this.state !== `${card.key}\n${card.state}`) this.announce(`${card.name} is ${card.state}`);
    this.state = `${card.key}\n${card.state}`;
    this.chips.update(card, store.cards);
    this.head.update(card);
    this.buttons.update(card);
    this.rate.update(card);
    this.branching.update(card, store.cards);
    this.settings.update(card);
    this.charts.update(card, store.cards);
    this.ranks.update(card);
    this.profile.update(card);
    this.samples.update(card);
    this.output.update(card);
    this.log.update(card);
  }

  /** Tell the kernel, now and then, that the user is active: it then looks more often. */
  #attend() {
    if (performance.now() - this.attended < ATTEND_PERIOD) return;
    this.attended = performance.now();
    this.session.send({ type: "attend" });
  }

  /** @param {KeyboardEvent} event */
  #onKey(event) {
    this.#attend();
    event.stopPropagation(); // what is pressed here is not for the notebook
    const target = /** @type {Element} */ (event.target);
    if (event.ctrlKey || event.metaKey || event.altKey || target.matches(FIELDS) || this.body.hidden) return;
    const card = this.session.store.cards.get(this.key);
    const press = (/** @type {string} */ action) => {
      const blocked = blockedReason(card, action);
      if (blocked) this.buttons.line.say(blocked);
      else if (!this.requests.isPending(this.key, action)) this.ask(action);
    };
    const pausing = card?.state === "paused" ? "resume" : "pause";
    const action = { p: pausing, s: "save", e: "evaluate" }[event.key.toLowerCase()];
    if (!action || event.shiftKey) return;
    event.preventDefault();
    press(action);
  }
}

/** @param {any} card undefined: none has come @returns {string} what a lost kernel means for the run, and what to do */
function lossAdvice(card) {
  if (!card) return "Run the cell again.";
  const open = `nb.attach(${JSON.stringify(/(^|\/)runs\/[^/]+$/.test(card.path) ? card.name : card.path)})`;
  if (!isLive(card)) return `If the kernel has ended, run the cell again, or ${open} in a new one.`;
  if (card.where === "thread") {
    return `If the kernel has ended, the run has stopped with it: ${open}.resume() continues it from its newest checkpoint.`;
  }
  return `If the kernel has ended, the run itself may go on: ${open} in a cell shows it again.`;
}

/** Called once per model: anywidget gives every view a handle of its own, from which the model cannot be told. */
function widget() {
  const session = new Session();
  return {
    /** @param {{model: import("./session.js").Model, el: HTMLElement}} view @returns {() => void} cleanup */
    render({ model, el }) {
      const view = new TrainingView(session, model, el);
      return () => view.destroy();
    },
  };
}

export default widget;

// @ts-check
/** The charts of a panel, zoomed together, and the tools above them. */
import { Chart } from "./chart.js";
import { element, formatCount, formatDuration, formatNumber } from "./common.js";
import { RunCurves, lossSeries, marksOf, placeOfStep, stepAtPlace } from "./curves.js";
import { keyed, setAttribute, setShown, setText } from "./dom.js";

/**
 * @typedef {import("./dom.js").PanelContext} PanelContext
 * @typedef {import("./curves.js").Axis} Axis
 */

/** @type {[Axis, string, {label: string, format: (value: number) => string}][]} */
const AXES = [
  ["step", "steps", { label: "step", format: formatCount }],
  ["tokens", "tokens", { label: "tokens", format: formatCount }],
  ["seconds", "time", { label: "trained for", format: formatDuration }],
];
/** @type {Map<string, {label: string, yFormat?: (value: number) => string}>} */
const SMALL = new Map([
  ["lr", { label: "learning rate", yFormat: (value) => formatNumber(value, 3) }],
  ["grad_norm", { label: "gradient norm" }],
  ["tokens_per_second", { label: "tokens/s" }],
  ["memory", { label: "memory", yFormat: (value) => (value >= 1e9 ? `${formatNumber(value / 1e9)} GB` : `${formatNumber(value / 1e6)} MB`) }],
]);
const MOST_EXTRA = 8; // charts of a loop's additional metrics
const MOST_WINDOWS = 4; // runs for which finer points are asked at once
const WINDOW_POINTS = 4096;
const SMALL_PERIOD = 1900; // milliseconds between drawings of the small charts while only points are added
const WINDOW_DELAY = 150; // milliseconds after the last move

export class ChartsPart {
  /** @param {PanelContext} panel */
  constructor(panel) {
    this.panel = panel;
    /** @type {Map<string, RunCurves>} */
    this.curves = new Map();
    /** @type {Map<string, Chart>} by metric */
    this.small = new Map();
    this.host = element("div", { class: "panel-loss" });
    this.grid = element("div", { class: "panel-small" });
    this.node = element("div", { class: "panel-charts" }, this.#tools(), this.host);
    this.main = new Chart(this.host, { label: "Loss", yLabel: "loss", height: 280 });
    this.main.onView = panel.guarded((view) => this.#look(view));
    /** The spans for which finer points were asked last. */
    this.wanted = "[]";
    this.timer = 0;
    /** What the small charts show besides points, and when they were drawn. */
    [this.smallOf, this.smallAt, this.smallTimer] = ["", 0, 0];
    this.card = /** @type {any} */ (null);
  }

  destroy() {
    clearTimeout(this.timer);
    clearTimeout(this.smallTimer);
    for (const chart of [this.main, ...this.small.values()]) chart.destroy();
  }

  #tools() {
    const { panel } = this;
    const { ui } = panel;
    this.axes = AXES.map(([axis, label]) =>
      element("button", { type: "button", text: label, onclick: panel.guarded(() => this.#along(axis)) }),
    );
    this.log = element("input", { type: "checkbox", checked: ui.log, onchange: panel.guarded(() => {
      ui.log = this.log.checked;
      panel.redraw();
    }) });
    this.slider = element("input", { type: "range", min: 0, max: 10, step: 0.5, "aria-label": "Smoothing, in percent of the points in view", value: String(ui.smoothing), oninput: panel.guarded(() => {
      ui.smoothing = Number(this.slider.value);
      panel.redraw();
    }) });
    this.amount = element("output", { class: "panel-amount" });
    this.all = element("button", { type: "button", class: "panel-all", text: "Show all", title: "Reset the zoom", onclick: panel.guarded(() => this.#look(null)) });
    return element(
      "div",
      { class: "panel-tools" },
      element("span", { class: "panel-segments", role: "group", "aria-label": "Horizontal axis" }, this.axes),
      element("label", null, this.log, " log"),
      element("label", { class: "panel-smoothing" }, "smooth ", this.slider, this.amount),
      this.all,
    );
  }

  /** @param {[number, number] | null} view */
  #look(view) {
    this.panel.ui.view = view;
    for (const chart of [this.main, ...this.small.values()]) chart.setView(view);
    this.panel.redraw();
  }

  /** Change the horizontal axis, and keep the visible range. @param {Axis} axis */
  #along(axis) {
    const { ui, session } = this.panel;
    if (ui.axis === axis) return;
    const { steps } = session.store.pointsOf(this.card.key);
    const view = ui.view?.map((place) => placeOfStep(steps, stepAtPlace(steps, place, ui.axis), axis));
    ui.axis = axis;
    this.#look(view && view[1] > view[0] ? [view[0], view[1]] : null);
  }

  /** @param {any} card @param {Map<string, any>} cards */
  update(card, cards) {
    this.card = card;
    const { ui, session } = this.panel;
    this.axes.forEach((/** @type {any} */ button, /** @type {number} */ i) => setAttribute(button, "aria-pressed", String(AXES[i][0] === ui.axis)));
    setText(this.amount, ui.smoothing ? `${ui.smoothing} %` : "off");
    this.all.style.visibility = ui.view ? "visible" : "hidden";
    // The steered run is drawn last, above the others.
    const shown = [...cards.values()].filter(({ key }) => key !== card.key && !ui.hidden.has(key));
    shown.push(card);
    this.#drawLoss(shown, cards);
    this.main.paint();
    this.#drawSmallNowAndThen(shown);
    this.#askWindows(shown);
    for (const key of this.curves.keys()) if (!session.store.points.has(key)) this.curves.delete(key);
  }

  /** @param {string} key @returns {RunCurves} */
  #curvesOf(key) {
    const curves = this.curves.get(key) ?? new RunCurves();
    this.curves.set(key, curves);
    return curves;
  }

  /** @param {any[]} shown @param {Map<string, any>} cards */
  #drawLoss(shown, cards) {
    const { ui, session } = this.panel;
    const { axis, view, smoothing } = ui;
    const { store } = session;
    const series = shown.map((card) =>
      lossSeries(card, store.pointsOf(card.key), this.#curvesOf(card.key), {
        axis, view, smoothing, alone: shown.length === 1, focused: card.key === this.card.key,
      }),
    );
    const chosen = ui.chosen.get(this.card.key) ?? null;
    const units = new Set(shown.map(({ loss_unit: unit }) => unit));
    setText(this.main.yTitle, units.size === 1 && this.card.loss_unit ? `loss, ${this.card.loss_unit}` : "loss");
    this.main.setXAxis(axisOf(axis));
    this.main.setLog(ui.log);
    this.main.setView(ui.view);
    this.main.setSeries(series.flat());
    this.main.setMarks(marksOf(this.card, store.pointsOf(this.card.key).steps, axis, cards.values(), chosen));
  }

  /** Draw the small charts when their content has changed; new points alone are drawn a little later. @param {any[]} shown */
  #drawSmallNowAndThen(shown) {
    const { ui, session } = this.panel;
    const tables = shown.map((card) => session.store.pointsOf(card.key).steps);
    const extra = this.card.metrics.slice(0, MOST_EXTRA);
    const metrics = [...extra, ...SMALL.keys()].filter((metric) => tables.some((table) => hasAny(table, metric)));
    const runs = shown.map(({ key, state, color }, i) => [key, state, color, tables[i].line]);
    const what = JSON.stringify([ui.axis, ui.view, metrics, runs]);
    const wait = this.smallAt + SMALL_PERIOD - performance.now();
    if (what === this.smallOf && wait > 0) {
      this.smallTimer ||= window.setTimeout(() => this.panel.redraw(), wait);
      return;
    }
    clearTimeout(this.smallTimer);
    [this.smallOf, this.smallAt, this.smallTimer] = [what, performance.now(), 0];
    this.#drawSmall(shown, metrics);
    for (const chart of this.small.values()) chart.paint();
  }

  /** @param {any[]} shown @param {string[]} metrics */
  #drawSmall(shown, metrics) {
    const { ui, session } = this.panel;
    keyed(this.grid, metrics, String, (metric) => this.#makeSmall(metric));
    for (const [metric, chart] of this.small) {
      if (metrics.includes(metric)) continue;
      chart.destroy();
      this.small.delete(metric);
    }
    for (const metric of metrics) {
      const chart = /** @type {Chart} */ (this.small.get(metric));
      chart.setXAxis(axisOf(ui.axis));
      chart.setView(ui.view);
      chart.setSeries(
        shown.map((card) => ({
          key: card.key, label: shown.length === 1 ? chart.label : card.name, color: `--nbllm-series-${card.color}`, kind: "line",
          ...this.#curvesOf(card.key).line(session.store.pointsOf(card.key), metric, ui.axis),
        })),
      );
    }
    setShown(this.grid, metrics.length > 0);
  }

  /** @param {string} metric */
  #makeSmall(metric) {
    const host = element("div", { class: "panel-small-chart" });
    const { label, yFormat } = SMALL.get(metric) ?? { label: metric, yFormat: undefined };
    const chart = new Chart(host, { label, yLabel: label, height: 120, yFormat, compact: true });
    chart.onView = this.panel.guarded((view) => this.#look(view));
    this.small.set(metric, chart);
    return host;
  }

  /** Request more detailed points of the zoomed range, once zooming has paused. @param {any[]} shown */
  #askWindows(shown) {
    const { ui, session } = this.panel;
    const spans = ui.view ? shown.slice(-MOST_WINDOWS).flatMap((card) => this.#coarse(card.key) ?? []) : [];
    const wanted = JSON.stringify(spans);
    if (wanted === this.wanted) return;
    this.wanted = wanted;
    clearTimeout(this.timer);
    if (!spans.length) return;
    const ask = () => {
      for (const { run, first, last } of spans) session.send({ type: "window", run, first, last, points: WINDOW_POINTS });
    };
    this.timer = window.setTimeout(this.panel.guarded(ask), WINDOW_DELAY);
  }

  /**
   * @param {string} run
   * @returns {{run: string, first: number, last: number, line: number} | null} the span in view, where the kernel has
   *   more points of it than there are here; line: which line of points, as rewinds begin new ones
   */
  #coarse(run) {
    const { ui, session } = this.panel;
    const { steps } = session.store.pointsOf(run);
    if (!ui.view || steps.total <= steps.length) return null;
    const [low, high] = ui.view.map((place) => stepAtPlace(steps, place, ui.axis));
    const [first, last] = [Math.max(0, Math.floor(low)), Math.ceil(high)];
    if (!(last > first)) return null;
    const taken = Math.min(last, steps.lastStep ?? 0) - first + 1;
    const stored = steps.placeAfter(last) - steps.placeAfter(first - 1);
    return stored < taken ? { run, first, last, line: steps.line } : null;
  }
}

/** @param {Axis} axis */
function axisOf(axis) {
  return /** @type {any} */ (AXES.find(([name]) => name === axis))[2];
}

/** @param {import("./store.js").PointTable} table @param {string} metric @returns {boolean} whether it has any value */
function hasAny(table, metric) {
  const values = table.column(metric);
  if (!values) return false;
  for (let i = table.length - 1; i >= 0; i--) if (Number.isFinite(values[i])) return true;
  return false;
}

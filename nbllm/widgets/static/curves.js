// @ts-check
/** What a panel's charts draw: series and marks of runs along steps, tokens or time. */
import { formatCount, visibleText } from "./common.js";
import { firstNotBelow, interpolate, smooth } from "./decimate.js";

/**
 * @typedef {"step" | "tokens" | "seconds"} Axis the column that x is
 * @typedef {import("./store.js").PointTable} PointTable
 * @typedef {import("./store.js").RunPoints} RunPoints
 * @typedef {import("./series.js").Series} Series
 * @typedef {import("./plot.js").Mark} Mark
 */

const QUIET = new Set(["save", "evaluate", "sample"]); // do not change the curve
const NO_X = new Float64Array(0);

/**
 * Where a step stands along another column; between points by proportion, beyond them at the end.
 * @param {PointTable} steps @param {number} step @param {Axis} axis @returns {number} NaN: unknown
 */
export function placeOfStep(steps, step, axis) {
  return axis === "step" ? step : interpolated(steps, step, "step", axis);
}

/**
 * The step at a place along another column.
 * @param {PointTable} steps @param {number} place @param {Axis} axis @returns {number}
 */
export function stepAtPlace(steps, place, axis) {
  return axis === "step" ? place : interpolated(steps, place, axis, "step");
}

/** @param {PointTable} table @param {number} value @param {string} from @param {string} to @returns {number} */
function interpolated(table, value, from, to) {
  const [known, wanted] = [table.column(from), table.column(to)];
  if (!known || !wanted || !table.length) return NaN;
  return interpolate(known, wanted, table.length, value);
}

/** Makes a run's series, and caches what does not change between two drawings. */
export class RunCurves {
  constructor() {
    /** @type {Map<string, {stamp: string, value: any}>} */
    this.kept = new Map();
  }

  /** @template T @param {string} name @param {string} stamp @param {() => T} make @returns {T} */
  #once(name, stamp, make) {
    const old = this.kept.get(name);
    if (old?.stamp === stamp) return old.value;
    const value = make();
    this.kept.set(name, { stamp, value });
    return value;
  }

  /** The training points, with those of a zoomed window where it was fetched. @param {RunPoints} points @returns {PointTable} */
  steps({ steps, window }) {
    if (!window || steps.length === 0) return steps;
    const stamp = `${steps.version} ${window.first} ${window.last} ${window.table.length}`;
    return this.#once("steps", stamp, () => steps.spliced(window.first, window.last, window.table));
  }

  /**
   * @param {RunPoints} points @param {string} metric @param {Axis} axis
   * @returns {{x: Float64Array, y: any, length: number}}
   */
  line(points, metric, axis) {
    const table = this.steps(points);
    const [x, y] = [table.column(axis), table.column(metric)];
    if (!x || !y) return { x: NO_X, y: NO_X, length: 0 };
    return { x: /** @type {Float64Array} */ (x), y, length: table.length };
  }

  /**
   * @param {RunPoints} points @param {Axis} axis
   * @param {number} percent over how many of the points in view: it reads well from afar and from near
   * @param {[number, number] | null} view
   */
  smoothed(points, axis, percent, view) {
    const line = this.line(points, "loss", axis);
    const { window, steps } = points;
    const place = (/** @type {number} */ x) => firstNotBelow(line.x, line.length, x);
    const seen = view ? place(view[1]) - place(view[0]) : line.length;
    const reach = (seen * percent) / 100;
    const stamp = `${steps.version} ${window?.first} ${window?.last} ${window?.table.length} ${axis} ${reach} ${line.length}`;
    return { ...line, y: this.#once("smoothed", stamp, () => smooth(line.y, line.length, reach)) };
  }

  /** @param {RunPoints} points @param {Axis} axis */
  heldOut({ steps, evaluations }, axis) {
    const [at, y] = [evaluations.column("step"), evaluations.column("loss")];
    if (!at || !y) return { x: NO_X, y: NO_X, length: 0 };
    const { length } = evaluations;
    const stamp = `${axis} ${steps.version} ${evaluations.version}`;
    const place = (/** @type {number} */ i) => placeOfStep(steps, at[i], axis);
    const x = this.#once("heldOut", stamp, () => Float64Array.from({ length }, (_, i) => place(i)));
    return { x, y, length };
  }
}

/**
 * @param {any} card @param {RunPoints} points @param {RunCurves} curves
 * @param {{axis: Axis, view: [number, number] | null, smoothing: number, alone: boolean, focused: boolean}} how
 * @returns {Series[]}
 */
export function lossSeries(card, points, curves, { axis, view, smoothing, alone, focused }) {
  const color = `--nbllm-series-${card.color}`;
  const raw = curves.line(points, "loss", axis);
  const held = curves.heldOut(points, axis);
  const name = alone ? "" : `${visibleText(card.name)}: `;
  const label = alone ? "training" : visibleText(card.name);
  /** @type {Series[]} */
  const series = [];
  const faint = smoothing > 0;
  if (raw.length && (!faint || focused)) {
    series.push({ key: `${card.key} raw`, label: faint ? `${name}each step` : label, color, kind: "line", faint, ...raw });
  }
  if (raw.length && faint) {
    const smoothed = curves.smoothed(points, axis, smoothing, view);
    series.push({ key: `${card.key} smoothed`, label, color, kind: "line", ...smoothed });
  }
  if (held.length) {
    const own = alone ? `--nbllm-series-${(card.color % 6) + 1}` : color;
    series.push({ key: `${card.key} held-out`, label: `${name}held-out`, color: own, kind: "points", dash: alone ? [] : [2, 3], shared: alone ? undefined : "held-out", ...held });
  }
  return series;
}

/**
 * What happened along a run's curve.
 * @param {any} card @param {PointTable} steps @param {Axis} axis @param {Iterable<any>} family
 * @param {number | null} chosen the checkpoint to which the run may be rewound, if the user has chosen one
 * @returns {Mark[]}
 */
export function marksOf(card, steps, axis, family, chosen) {
  const at = (/** @type {number} */ step) => placeOfStep(steps, step, axis);
  /** @type {Mark[]} */
  const marks = [];
  // First, and of the kind that is never hidden behind others: it follows the slider.
  if (chosen !== null) marks.push({ x: at(chosen), label: `rewind to ${formatCount(chosen)}`, kind: "fork", color: "--nbllm-bad" });
  for (const { step, on_branch: onBranch } of card.checkpoints) {
    if (onBranch) marks.push({ x: at(step), label: `checkpoint ${formatCount(step)}`, kind: "checkpoint" });
  }
  for (const action of card.actions) {
    if (action.outcome !== "applied" || action.effective === false || QUIET.has(action.action)) continue;
    const kind = String(action.actor).startsWith("rule:") ? "rule" : "action";
    const by = action.actor && action.actor !== "person" ? ` (${action.actor})` : "";
    const place = action.action === "rewind" ? (action.args?.to ?? action.step) : action.step;
    marks.push({ x: at(place), label: shortText(`${action.text}${by}, step ${formatCount(action.step)}`, 80), kind });
  }
  for (const other of family) {
    if (other.parent?.run !== card.key) continue;
    marks.push({ x: at(other.parent.step), label: `fork ${visibleText(other.name)}`, kind: "fork", color: `--nbllm-series-${other.color}` });
  }
  if (card.parent?.step) {
    marks.push({ x: at(card.parent.step), label: `forked from ${visibleText(card.parent.run)}`, kind: "fork" });
  }
  return marks.filter(({ x }) => Number.isFinite(x));
}

/** @param {string} text @param {number} most @returns {string} */
function shortText(text, most) {
  const shown = visibleText(text).replaceAll("\n", " ");
  return shown.length <= most ? shown : `${shown.slice(0, most - 1)}…`;
}

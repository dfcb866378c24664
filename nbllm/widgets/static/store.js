// @ts-check
/** The state of a family of runs, folded from the kernel's messages: cards and points. */
import { decodeColumns } from "./common.js";
import { firstNotBelow, thin } from "./decimate.js";

/**
 * @typedef {Float32Array | Float64Array} Column
 * @typedef {Record<string, any>} Card as nbllm/widgets/card.py makes it
 * @typedef {{steps: PointTable, evaluations: PointTable, window: {first: number, last: number, table: PointTable} | null}}
 *   RunPoints
 */

const MOST_POINTS = 16384;

/** Fields that every card has, so that none has to be checked for presence. */
const BLANK = {
  name: "", path: "", state: "starting", step: 0, steps: null, reason: "", parent: null, color: 1, settings: [],
  frozen: [], cannot: {}, facts: {}, checkpoints: [], actions: [], num_actions: 0, samples: [], warnings: [],
  loss_unit: "", scheduled: false, num_warnings: 0, rules: [], metrics: [], profile: null, where: "", host: "", time: null, last_heard: null, problems: [],
};

/** Columns of equal length that grow at the end, and are truncated by a rewind. */
export class PointTable {
  constructor() {
    /** @type {Map<string, Column>} each with room for more than `length` */
    this.columns = new Map();
    this.length = 0;
    /** How many points the run has, of which these are some. */
    this.total = 0;
    /** Grows with every change. */
    this.version = 0;
    /** Grows whenever all points are replaced. */
    this.line = 0;
  }

  /** @param {string} name @returns {Column | null} of which the first `length` count */
  column(name) {
    return this.columns.get(name) ?? null;
  }

  /** @returns {number | null} the step of the newest point */
  get lastStep() {
    return this.length ? (this.column("step") ?? [])[this.length - 1] : null;
  }

  /** @param {Record<string, Column>} fresh @param {number} total */
  replace(fresh, total) {
    this.columns.clear();
    this.length = 0;
    this.line++;
    this.append(fresh, null, total);
  }

  /**
   * @param {Record<string, Column>} fresh @param {number | null} cut points after this step are dropped first
   * @param {number} total
   */
  append(fresh, cut, total) {
    if (cut !== null) this.length = this.placeAfter(cut);
    const count = fresh.step?.length ?? 0;
    const length = this.length + count;
    for (const name of new Set([...this.columns.keys(), ...Object.keys(fresh)])) {
      const target = this.#room(name, length, fresh[name] instanceof Float64Array);
      if (fresh[name]) target.set(fresh[name], this.length);
      else target.fill(NaN, this.length, length);
    }
    this.length = length;
    this.total = Math.max(total ?? 0, length);
    if (length > MOST_POINTS) this.#thin(MOST_POINTS / 2);
    this.version++;
  }

  /** @param {number} step @returns {number} how many points there are up to it */
  placeAfter(step) {
    const steps = this.column("step");
    if (!steps) return 0;
    let place = firstNotBelow(steps, this.length, step);
    while (place < this.length && steps[place] <= step) place++;
    return place;
  }

  /**
   * This table with the points from one step to another taken from a finer one.
   * @param {number} first @param {number} last @param {PointTable} finer @returns {PointTable}
   */
  spliced(first, last, finer) {
    const before = this.placeAfter(first - 1);
    const after = this.placeAfter(last);
    const joined = new PointTable();
    joined.length = before + finer.length + this.length - after;
    for (const [name, column] of this.columns) {
      const made = new (/** @type {any} */ (column).constructor)(joined.length).fill(NaN);
      made.set(column.subarray(0, before));
      const inside = finer.column(name);
      if (inside) made.set(inside.subarray(0, finer.length), before);
      made.set(column.subarray(after, this.length), before + finer.length);
      joined.columns.set(name, made);
    }
    return joined;
  }

  /** @param {string} name @param {number} length @param {boolean} wide @returns {Column} */
  #room(name, length, wide) {
    const old = this.columns.get(name);
    if (old && old.length >= length) return old;
    const kind = wide || old instanceof Float64Array ? Float64Array : Float32Array;
    const made = new kind(Math.max(256, 2 * length)).fill(NaN, 0, this.length);
    if (old) made.set(old.subarray(0, this.length));
    this.columns.set(name, made);
    return made;
  }

  /** @param {number} most */
  #thin(most) {
    const by = this.columns.has("loss") ? "loss" : "step";
    const kept = thin(Object.fromEntries(this.columns), this.length, most, by);
    for (const column of this.columns.values()) kept.forEach((from, to) => (column[to] = column[from]));
    this.length = kept.length;
  }
}

/** The runs of one panel. */
export class RunStore {
  constructor() {
    /** @type {Map<string, Card>} in the order in which they came */
    this.cards = new Map();
    /** @type {Map<string, RunPoints>} */
    this.points = new Map();
    /** The run that the panel was opened for. */
    this.focus = "";
    this.seq = -1;
    /** Whether a snapshot has come. */
    this.known = false;
  }

  /** @param {any} message "snapshot" */
  snapshot({ seq, focus, runs }) {
    this.cards = new Map(runs.map((/** @type {Card} */ card) => [card.key, { ...BLANK, name: card.key, ...card }]));
    for (const key of this.points.keys()) if (!this.cards.has(key)) this.points.delete(key);
    this.focus = this.cards.has(focus) ? focus : ([...this.cards.keys()][0] ?? "");
    this.seq = seq;
    this.known = true;
  }

  /** @param {any} message "update" @returns {boolean} false: one before it was missed */
  update({ seq, runs }) {
    const expected = seq === this.seq + 1;
    for (const card of runs) {
      const before = this.cards.get(card.key) ?? { ...BLANK, name: card.key };
      this.cards.set(card.key, { ...before, ...card });
    }
    this.seq = seq;
    return expected;
  }

  /** @param {any} message "points" @param {DataView[]} buffers */
  take({ run, series, mode, cut, total, first, last, columns }, buffers) {
    const fresh = decodeColumns(columns, buffers ?? []);
    const points = this.pointsOf(run);
    if (mode === "window") {
      const table = new PointTable();
      table.replace(fresh, total);
      points.window = { first, last, table };
      return;
    }
    const table = series === "evaluations" ? points.evaluations : points.steps;
    if (mode === "replace") table.replace(fresh, total);
    else table.append(fresh, cut ?? null, total);
    const undone = mode === "replace" || (cut != null && points.window && cut < points.window.last);
    if (series === "steps" && undone) points.window = null;
  }

  /** @param {string} key @returns {RunPoints} */
  pointsOf(key) {
    let points = this.points.get(key);
    if (!points) {
      points = { steps: new PointTable(), evaluations: new PointTable(), window: null };
      this.points.set(key, points);
    }
    return points;
  }
}

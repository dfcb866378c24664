// @ts-check
/** The order of the runs in the table: a family tree of forks, or sorted by a column. */

/**
 * @typedef {{name: string, state: string, reason: string, step: number, steps: number | null, loss: number | null,
 *   held_out: number | null, parent: {run: string, step: number | null} | null, replay_of: string,
 *   created: number | null, time: number | null, open: string, sparkline?: (number | null)[]}} RunRow
 * @typedef {{column: string, descending: boolean}} RunSort
 * @typedef {{row: RunRow, lines: ("line" | "gap" | "tee" | "elbow")[], under: boolean}} PlacedRun
 *   lines: the tree's lines in front of the name, from the left; under: it stands under its parent
 */

export const RUN_STATES = ["running", "starting", "paused", "failed", "lost", "stopped", "replayed", "finished"];
const DEEPEST = 8; // levels that are indented

/** @param {RunRow} row @returns {number | null} how far the training loss came down */
function runFall({ sparkline }) {
  const values = (sparkline ?? []).filter((value) => value !== null);
  return values.length > 1 ? /** @type {number} */ (values.at(-1)) - /** @type {number} */ (values[0]) : null;
}

/** @type {Record<string, (row: RunRow) => string | number | null>} */
const RUN_KEYS = {
  name: (row) => row.name,
  state: (row) => RUN_STATES.indexOf(row.state),
  step: (row) => row.step,
  loss: (row) => row.loss,
  held_out: (row) => row.held_out,
  curve: runFall,
  created: (row) => row.created,
  time: (row) => row.time,
};

/** @param {RunRow} row @returns {string} the run that it was forked from or repeats; "": none */
function originOf({ parent, replay_of: repeated }) {
  return parent?.run ?? repeated;
}

/**
 * Whether every word occurs in the run's name, its parent's, its state or its reason.
 * @param {RunRow} row @param {string} filter @returns {boolean}
 */
export function runMatches(row, filter) {
  const text = `${row.name}\n${row.state}\n${originOf(row)}\n${row.reason}`.toLowerCase();
  return filter.toLowerCase().split(/\s+/).every((word) => text.includes(word));
}

/**
 * @param {RunRow[]} rows @param {RunSort | null} sort null: as a family tree
 * @returns {PlacedRun[]}
 */
export function orderRuns(rows, sort) {
  if (!sort) return runTree(rows);
  const key = RUN_KEYS[sort.column];
  const sign = sort.descending ? -1 : 1;
  const keyed = rows.map((row) => ({ row, value: key(row) }));
  keyed.sort((a, b) => {
    // Unknown values come last in both directions.
    if (a.value === null || b.value === null) return Number(a.value === null) - Number(b.value === null);
    return sign * compareRunKeys(a.value, b.value) || compareRunKeys(a.row.name, b.row.name);
  });
  return keyed.map(({ row }) => ({ row, lines: [], under: false }));
}

const collateRuns = new Intl.Collator(undefined, { numeric: true }).compare;

/** @param {string | number} a @param {string | number} b @returns {number} */
function compareRunKeys(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return collateRuns(String(a), String(b));
}

/** @param {RunRow[]} rows @returns {PlacedRun[]} */
function runTree(rows) {
  const names = new Set(rows.map((row) => row.name));
  /** @type {Map<string | null, RunRow[]>} */
  const children = new Map([[null, []]]);
  for (const row of rows) {
    const origin = originOf(row);
    const parent = names.has(origin) && origin !== row.name ? origin : null;
    children.set(parent, [...(children.get(parent) ?? []), row]);
  }
  /** @type {(a: RunRow, b: RunRow) => number} */
  const newestFirst = (a, b) => (b.created ?? 0) - (a.created ?? 0) || compareRunKeys(a.name, b.name);
  /** @type {(a: RunRow, b: RunRow) => number} */
  const earliestFork = (a, b) => (a.parent?.step ?? 0) - (b.parent?.step ?? 0) || newestFirst(b, a);
  /** @type {PlacedRun[]} */
  const placed = [];
  const seen = new Set();
  /** @param {RunRow} row @param {("line" | "gap")[]} above @param {"tee" | "elbow" | null} turn */
  const place = (row, above, turn) => {
    if (seen.has(row.name)) return;
    seen.add(row.name);
    placed.push({ row, lines: turn ? [...above, turn] : above, under: turn !== null });
    const forks = (children.get(row.name) ?? []).sort(earliestFork);
    /** @type {("line" | "gap")[]} */
    const inner = turn && above.length < DEEPEST - 1 ? [...above, turn === "tee" ? "line" : "gap"] : above;
    forks.forEach((fork, i) => place(fork, inner, i < forks.length - 1 ? "tee" : "elbow"));
  };
  for (const row of /** @type {RunRow[]} */ (children.get(null)).sort(newestFirst)) place(row, [], null);
  for (const row of rows) place(row, [], null); // a cycle of parents, which only a forged record can have
  return placed;
}

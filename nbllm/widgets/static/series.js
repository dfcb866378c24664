// @ts-check
/** The series of a chart: their extent, which of their points to draw, and their dashes. */
import { firstNotBelow, isAscending, outline } from "./decimate.js";
import { withHeadroom } from "./scale.js";

/**
 * @typedef {{key: string, label: string, color: string, x: Float64Array, y: Float32Array | Float64Array,
 *   length: number, kind: "line" | "points", faint?: boolean, dash?: number[], shared?: string}} Series
 *   color: a CSS variable's name; x: ascending, or it is sorted; y: NaN breaks the line; points: a line with dots;
 *   dash: none given: by the colour, where lines of several colours are shown; shared: the one entry in the legend that
 *   stands for all such series
 */

/**
 * The same series with x ascending and present: as it is where it is so already.
 * @param {Series} series @returns {Series}
 */
export function tidySeries(series) {
  const { key, x, y, length } = series;
  if (length > Math.min(x.length, y.length)) {
    throw new RangeError(`series ${key}: ${length} points, but ${x.length} x and ${y.length} y`);
  }
  if (isAscending(x, length)) return series;
  const order = [...Array(length).keys()].filter((i) => Number.isFinite(x[i]));
  order.sort((a, b) => x[a] - x[b] || a - b);
  return {
    ...series,
    x: Float64Array.from(order, (i) => x[i]),
    y: Float64Array.from(order, (i) => y[i]),
    length: order.length,
  };
}

/** @param {Series} series @returns {boolean} whether every x is a whole number */
export function hasWholeX({ x, length }) {
  for (let i = 0; i < length; i++) if (!Number.isInteger(x[i])) return false;
  return true;
}

/** @param {Series} series @returns {boolean} whether there is any value */
export function hasValues({ y, length }) {
  for (let i = 0; i < length; i++) if (Number.isFinite(y[i])) return true;
  return false;
}

/**
 * From the first to the last x of all, never without extent.
 * @param {Series[]} series @returns {[number, number]}
 */
export function extentOf(series) {
  let low = Infinity;
  let high = -Infinity;
  for (const { x, length } of series) {
    if (length === 0) continue;
    low = Math.min(low, x[0]);
    high = Math.max(high, x[length - 1]);
  }
  if (low > high) return [0, 1];
  return low === high ? [low - 0.5, high + 0.5] : [low, high];
}

/**
 * Which points of each series to draw between low and high, and the neighbours that lines come from and go to.
 * @param {Series[]} series @param {number} low @param {number} high
 * @param {number} columns how many pixels wide @param {boolean} log @returns {Int32Array[]}
 */
export function outlinesOf(series, low, high, columns, log) {
  const grid = { origin: low, perUnit: columns / (high - low) };
  return series.map(({ x, y, length }) => {
    const from = Math.max(0, firstNotBelow(x, length, low) - 1);
    let to = firstNotBelow(x, length, high);
    while (to < length && x[to] <= high) to++;
    return outline(x, y, from, Math.min(length, to + 1), grid, log);
  });
}

/**
 * The values shown, with headroom: of the points in view, or else of the lines that cross it.
 * @param {Series[]} series @param {Int32Array[]} lines of `outlinesOf` @param {number} low @param {number} high
 * @param {boolean} log @returns {[number, number] | null}
 */
export function rangeOf(series, lines, low, high, log) {
  for (const within of [true, false]) {
    let least = Infinity;
    let greatest = -Infinity;
    lines.forEach((indexes, i) => {
      const { x, y } = series[i];
      for (const index of indexes) {
        if (index < 0 || (within && !(x[index] >= low && x[index] <= high))) continue;
        if (y[index] < least) least = y[index];
        if (y[index] > greatest) greatest = y[index];
      }
    });
    if (least <= greatest) return withHeadroom(least, greatest, log);
  }
  return null;
}

const DASHES = [[], [8, 3], [2, 3], [10, 3, 2, 3], [14, 4], [5, 2, 1, 2]];

/**
 * The dashes of each line: its own, or by its colour where there are several, since not everybody sees colours.
 * @param {Series[]} series @returns {number[][]}
 */
export function dashesOf(series) {
  const colors = new Set(series.map(({ color }) => color));
  return series.map(({ color, dash, faint }) => {
    if (faint) return [];
    if (dash) return dash;
    return colors.size > 1 ? dashOf(color) : [];
  });
}

/** The dashes that go with a colour. @param {string} color a CSS variable's name @returns {number[]} */
export function dashOf(color) {
  const number = Number(color.match(/(\d+)$/)?.[1] ?? 1);
  return DASHES[(number - 1) % DASHES.length];
}

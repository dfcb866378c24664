// @ts-check
/** Fewer points that look the same, and smoother ones. */

const EARLY = 0.1; // of the points before one: so far it reaches at most, since a loss falls steeply at first

/**
 * The mean of each value and its neighbours on both sides, weighted less and less with their distance: it neither lags
 * where the line falls nor flattens how it begins. A missing value stays missing and changes nothing.
 *
 * @param {ArrayLike<number>} y
 * @param {number} length how many of `y` count
 * @param {number} reach over about how many points to each side; up to 1: as it is
 * @returns {Float64Array}
 */
export function smooth(y, length, reach) {
  const sums = new Float64Array(length);
  const norms = new Float64Array(length);
  const keepAt = (/** @type {number} */ i) => 1 - 1 / Math.max(1, Math.min(reach, EARLY * i));
  let [sum, norm] = [0, 0];
  for (let i = 0; i < length; i++) {
    if (!Number.isFinite(y[i])) continue;
    const keep = keepAt(i);
    sums[i] = sum = keep * sum + y[i];
    norms[i] = norm = keep * norm + 1;
  }
  [sum, norm] = [0, 0];
  for (let i = length - 1; i >= 0; i--) {
    if (!Number.isFinite(y[i])) continue;
    const keep = keepAt(i);
    sums[i] += keep * sum; // the value itself is in the first sum
    norms[i] += keep * norm;
    sum = keep * sum + y[i];
    norm = keep * norm + 1;
  }
  return sums.map((total, i) => (norms[i] ? total / norms[i] : NaN));
}

/**
 * Which points to keep: the first, the last, and the least and greatest of column `by` in each of equal spans of
 * the column `step`, or of equal counts where there is no ascending `step`. Spans, so that points that are thinned
 * again and again while new ones come stay evenly dense.
 *
 * @param {Record<string, ArrayLike<number>>} columns
 * @param {number} length how many points there are
 * @param {number} most how many to keep at most, at least 2
 * @param {string} by the column whose extremes matter
 * @returns {Int32Array} ascending indexes
 */
export function thin(columns, length, most, by) {
  if (length <= most) return Int32Array.from({ length }, (_, i) => i);
  if (most < 2) throw new RangeError(`thin: cannot keep ${most} points`);
  const values = columns[by];
  if (!values) throw new Error(`thin: there is no column ${by}`);
  const steps = columns.step && isAscending(columns.step, length) ? columns.step : null;
  const spans = Math.floor((most - 2) / 2);
  const start = steps ? steps[1] : 1;
  const end = steps ? steps[length - 2] : length - 2;
  const scale = end > start ? spans / (end - start) : 0;
  const kept = new Int32Array(most);
  kept[0] = 0;
  let count = 1;
  let [span, least, greatest] = [-1, -1, -1];
  const flush = () => {
    if (span < 0) return;
    kept[count++] = Math.min(least, greatest);
    if (least !== greatest) kept[count++] = Math.max(least, greatest);
  };
  for (let i = 1; spans > 0 && i < length - 1; i++) {
    const at = Math.min(Math.floor(((steps ? steps[i] : i) - start) * scale), spans - 1);
    if (at !== span) {
      flush();
      [span, least, greatest] = [at, i, i];
    } else {
      if (values[i] < values[least] || Number.isNaN(values[least])) least = i;
      if (values[i] > values[greatest] || Number.isNaN(values[greatest])) greatest = i;
    }
  }
  flush();
  kept[count++] = length - 1;
  return kept.slice(0, count);
}

/**
 * Whether all values are finite and none is less than the one before it.
 * @param {ArrayLike<number>} values @param {number} length @returns {boolean}
 */
export function isAscending(values, length) {
  if (length === 0) return true;
  for (let i = 1; i < length; i++) if (!(values[i] >= values[i - 1])) return false;
  return values[0] > -Infinity && values[length - 1] < Infinity;
}

/**
 * The points that a line has to pass through to look, pixel by pixel, as if it passed through all: of each pixel
 * column the first, the least, the greatest and the last.
 *
 * @param {ArrayLike<number>} x ascending
 * @param {ArrayLike<number>} y
 * @param {number} from the first index
 * @param {number} to one past the last index
 * @param {{origin: number, perUnit: number}} columns where one begins, and how many are in one unit of x
 * @param {boolean} positive leave out what a logarithm does not take
 * @returns {Int32Array} indexes in order; -1 where the line breaks, as it does at missing values
 */
export function outline(x, y, from, to, { origin, perUnit }, positive) {
  if (to <= from) return new Int32Array(0);
  const columns = Math.ceil((x[to - 1] - x[from]) * perUnit) + 2;
  const kept = new Int32Array(Math.min(2 * (to - from), 5 * columns) + 1);
  const floor = positive ? 0 : -Infinity;
  let count = 0;
  let broken = false;
  let [column, first, least, greatest, last] = [NaN, -1, -1, -1, -1];
  const flush = () => {
    if (first < 0) return;
    kept[count++] = first;
    const early = Math.min(least, greatest);
    const late = Math.max(least, greatest);
    if (early > first) kept[count++] = early;
    if (late > first && late > early) kept[count++] = late;
    if (last > first && last > late) kept[count++] = last;
  };
  for (let i = from; i < to; i++) {
    const value = y[i];
    if (!(value > floor && value < Infinity)) {
      broken = true;
      continue;
    }
    const at = Math.floor((x[i] - origin) * perUnit);
    if (at !== column) {
      flush();
      if (broken && first >= 0) kept[count++] = -1;
      column = at;
      first = least = greatest = last = i;
    } else {
      last = i;
      if (value < y[least]) least = i;
      else if (value > y[greatest]) greatest = i;
    }
    broken = false;
  }
  flush();
  return kept.slice(0, count);
}

/**
 * The first index whose value is not less than `value`.
 * @param {ArrayLike<number>} sorted @param {number} length @param {number} value @returns {number}
 */
export function firstNotBelow(sorted, length, value) {
  let low = 0;
  let high = length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/**
 * The value at `x` on the line through the points, held constant beyond its ends.
 * @param {ArrayLike<number>} xs ascending @param {ArrayLike<number>} ys @param {number} length @param {number} x
 * @returns {number} NaN: there are no points
 */
export function interpolate(xs, ys, length, x) {
  const right = firstNotBelow(xs, length, x);
  if (right >= length) return ys[length - 1] ?? NaN;
  if (right === 0 || xs[right] === x) return ys[right];
  const share = (x - xs[right - 1]) / (xs[right] - xs[right - 1]);
  return ys[right - 1] + share * (ys[right] - ys[right - 1]);
}

// @ts-check
/** Where values stand on a line, and which of them are written beside it. */

/**
 * @typedef {{low: number, high: number, log: boolean, to: (value: number) => number,
 *   from: (pixel: number) => number}} Scale
 */

/**
 * A scale from low..high to the pixels start..end.
 * @param {number} low @param {number} high @param {number} start @param {number} end
 * @param {boolean} [log] by logarithm; both ends are positive then
 * @returns {Scale}
 */
export function scaleBetween(low, high, start, end, log = false) {
  const a = log ? Math.log(low) : low;
  const perUnit = (end - start) / ((log ? Math.log(high) : high) - a);
  return {
    low,
    high,
    log,
    to: log ? (value) => start + (Math.log(value) - a) * perUnit : (value) => start + (value - a) * perUnit,
    from: log
      ? (pixel) => Math.exp(a + (pixel - start) / perUnit)
      : (pixel) => a + (pixel - start) / perUnit,
  };
}

/**
 * Low and high with some room around them; never without extent, and never below zero where no value is.
 * @param {number} low @param {number} high @param {boolean} log @returns {[number, number]}
 */
export function withHeadroom(low, high, log) {
  if (log) {
    const room = Math.max((high / low) ** 0.06, 1.02);
    return [low / room, high * room];
  }
  const room = high > low ? 0.06 * (high - low) : 0.1 * Math.abs(high) || 1;
  return [low >= 0 ? Math.max(0, low - room) : low - room, high + room];
}

/**
 * About `count` round values (1, 2, 5 times a power of ten) from low to high.
 * @param {number} low @param {number} high @param {number} count
 * @param {boolean} [whole] whole numbers only
 * @returns {number[]}
 */
export function linearTicks(low, high, count, whole = false) {
  if (!(high > low)) return [low];
  const raw = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(raw));
  const factor = [1, 2, 5].find((round) => round * power >= raw * 0.75) ?? 10;
  return multiples(low, high, whole ? Math.max(1, factor * power) : factor * power);
}

/**
 * Powers of ten from low to high, with 2 and 5 times them where there is room; thinned where there are too many.
 * @param {number} low positive @param {number} high @param {number} count about how many @returns {number[]}
 */
export function logTicks(low, high, count) {
  const first = Math.floor(Math.log10(low));
  const last = Math.ceil(Math.log10(high));
  const decades = Math.log10(high / low);
  const factors = decades * 3 <= count * 1.5 ? [1, 2, 5] : [1];
  const every = Math.max(1, Math.ceil(decades / Math.max(1, count * 1.25)));
  const ticks = [];
  for (let power = first; power <= last; power++) {
    if (power % every !== 0) continue;
    for (const factor of factors) ticks.push(Number(`${factor}e${power}`));
  }
  const inside = ticks.filter((tick) => tick >= low * 0.9999 && tick <= high * 1.0001);
  return inside.length >= 3 ? inside : linearTicks(low, high, count);
}

const DURATION_STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400];

/**
 * Round durations from low to high seconds.
 * @param {number} low @param {number} high @param {number} count @returns {number[]}
 */
export function durationTicks(low, high, count) {
  const raw = (high - low) / Math.max(1, count);
  if (raw < 1) return linearTicks(low, high, count);
  const step = DURATION_STEPS.find((seconds) => seconds >= raw * 0.75);
  return step ? multiples(low, high, step) : linearTicks(low / 86400, high / 86400, count).map((day) => day * 86400);
}

/** @param {number} low @param {number} high @param {number} step @returns {number[]} */
function multiples(low, high, step) {
  const ticks = [];
  const end = Math.floor(high / step + 1e-6);
  for (let i = Math.ceil(low / step - 1e-6); i <= end; i++) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

const LARGE = /** @type {[number, string][]} */ ([
  [1e12, "T"],
  [1e9, "G"],
  [1e6, "M"],
  [1e3, "k"],
]);

/**
 * The texts of ticks: as many decimals as tell them apart, the same for all; thousands in groups, or with k, M, G, T
 * where there is no room.
 * @param {number[]} ticks @param {{brief?: boolean, log?: boolean}} [how] log: each by itself @returns {string[]}
 */
export function tickLabels(ticks, { brief = false, log = false } = {}) {
  if (log) return ticks.map((tick) => tickText(tick, tick, brief, Math.abs(tick)));
  const gaps = ticks.slice(1).map((tick, i) => tick - ticks[i]);
  const largest = Math.max(...ticks.map(Math.abs), 0);
  const step = gaps.length ? Math.min(...gaps) : largest;
  return ticks.map((tick) => tickText(tick, step, brief, largest));
}

/** @param {number} tick @param {number} step @param {boolean} brief @param {number} largest @returns {string} */
function tickText(tick, step, brief, largest) {
  if (tick === 0) return "0";
  if (largest < 1e-3 || largest >= 1e15) return tick.toExponential().replace("e+", "e");
  const [scale, unit] = (brief && LARGE.find(([size]) => largest >= size)) || [1, ""];
  const decimals = decimalsOf(step / scale);
  const [whole, fraction] = Math.abs(tick / scale).toFixed(decimals).split(".");
  const text = whole.replace(/\B(?=(\d{3})+$)/g, ",") + (fraction ? `.${fraction}` : "");
  return `${tick < 0 ? "−" : ""}${text}${unit}`;
}

/** How many decimals `step` has. @param {number} step @returns {number} */
function decimalsOf(step) {
  const [mantissa, exponent] = Number(step.toPrecision(10)).toExponential().split("e");
  return Math.min(12, Math.max(0, (mantissa.split(".")[1] ?? "").length - Number(exponent)));
}

// @ts-check
/** Which values a chart writes along its axes, so that they have room. */
import { formatCount, formatDuration, formatNumber } from "./common.js";
import { durationTicks, linearTicks, logTicks, tickLabels } from "./scale.js";

/**
 * @typedef {{value: number, label: string}} Tick
 * @typedef {(value: number) => string} Format
 * @typedef {import("./scale.js").Scale} Scale
 */

/** @param {Format} format @returns {boolean} whether it has no unit, so that ticks can have just their decimals */
function isPlain(format) {
  return format === formatNumber || format === formatCount;
}

/**
 * @param {Scale} scale @param {number} count about how many @param {Format | undefined} format
 * @param {boolean} narrow whether to spare room @returns {Tick[]}
 */
export function verticalTicks({ low, high, log }, count, format, narrow) {
  const decades = log && high / low > 10;
  const values = decades ? logTicks(low, high, count) : linearTicks(low, high, count);
  if (format && !isPlain(format)) return values.map((value) => ({ value, label: format(value) }));
  let labels = tickLabels(values, { log: decades });
  if (narrow || labels.some((label) => label.length > 7)) labels = tickLabels(values, { log: decades, brief: true });
  return values.map((value, i) => ({ value, label: labels[i] }));
}

/**
 * @param {Scale} scale @param {number} width pixels @param {Format} format @param {boolean} whole
 * @param {(text: string) => number} measure the width of a text @returns {Tick[]}
 */
export function horizontalTicks({ low, high, to }, width, format, whole, measure) {
  const plain = isPlain(format);
  /** @type {Tick[]} */
  let ticks = [];
  for (const [apart, brief] of /** @type {[number, boolean][]} */ ([[80, false], [80, true], [140, true]])) {
    const count = Math.max(2, width / apart);
    const values = format === formatDuration ? durationTicks(low, high, count) : linearTicks(low, high, count, whole && plain);
    const labels = plain ? tickLabels(values, { brief }) : values.map(format);
    ticks = values.map((value, i) => ({ value, label: labels[i] }));
    const room = values.length > 1 ? to(values[1]) - to(values[0]) : Infinity;
    if (Math.max(...labels.map(measure), 0) + 14 <= room) break;
  }
  return ticks;
}

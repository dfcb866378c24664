// @ts-check
/** Reading values off a chart: which points are nearest, and the box that says them. */
import { element, visibleText } from "./common.js";
import { firstNotBelow } from "./decimate.js";

/**
 * @typedef {{x: ArrayLike<number>, y: ArrayLike<number>, length: number, label: string, color: string}} Readable
 * @typedef {{series: any, index: number, x: number, y: number}} ReadingRow
 */

/**
 * The point of a series nearest to `x` that has a value.
 * @param {Readable} series @param {number} x @param {boolean} positive @returns {number} its index, -1: none
 */
export function nearestPoint(series, x, positive) {
  const right = nextPoint(series, firstNotBelow(series.x, series.length, x), 1, positive);
  const left = nextPoint(series, firstNotBelow(series.x, series.length, x) - 1, -1, positive);
  if (left < 0 || right < 0) return Math.max(left, right);
  return series.x[right] - x < x - series.x[left] ? right : left;
}

/** @param {Readable} series @param {number} from @param {1 | -1} by @param {boolean} positive @returns {number} */
function nextPoint(series, from, by, positive) {
  for (let i = from; i >= 0 && i < series.length; i += by) {
    if (Number.isFinite(series.y[i]) && (!positive || series.y[i] > 0)) return i;
  }
  return -1;
}

/**
 * What every series says near `x`: each at its own nearest point, if that is within `reach`.
 * @param {Readable[]} series @param {number} x @param {number} reach in units of x @param {boolean} positive
 * @returns {{x: number, rows: ReadingRow[]} | null} x: where the nearest of all stands
 */
export function readAt(series, x, reach, positive) {
  /** @type {ReadingRow[]} */
  const rows = [];
  let nearest = NaN;
  for (const one of series) {
    const index = nearestPoint(one, x, positive);
    if (index < 0) continue;
    const at = one.x[index];
    const outside = x < one.x[0] || x > one.x[one.length - 1];
    if (outside && Math.abs(at - x) > reach) continue;
    rows.push({ series: one, index, x: at, y: one.y[index] });
    if (!(Math.abs(nearest - x) <= Math.abs(at - x))) nearest = at;
  }
  return rows.length ? { x: nearest, rows } : null;
}

/**
 * The next x after (by 1) or before (by -1) `x` at which any series has a value.
 * @param {Readable[]} series @param {number} x @param {1 | -1} by @param {boolean} positive @returns {number | null}
 */
export function neighbour(series, x, by, positive) {
  /** @type {number | null} */
  let best = null;
  for (const one of series) {
    let from = firstNotBelow(one.x, one.length, x);
    if (by > 0) while (from < one.length && one.x[from] <= x) from++;
    else from--;
    const index = nextPoint(one, from, by, positive);
    if (index >= 0 && (best === null || (one.x[index] - best) * by < 0)) best = one.x[index];
  }
  return best;
}

/** A box beside the reading line that stays inside the chart and lets the pointer through. */
export class Tooltip {
  /** @param {HTMLElement} root */
  constructor(root) {
    this.root = root;
    this.node = element("div", {
      "aria-hidden": "true",
      class: "nbllm-chart-tooltip",
      style: {
        position: "absolute",
        display: "none",
        left: "0",
        top: "0",
        pointerEvents: "none",
        boxSizing: "border-box",
        maxWidth: "calc(100% - 8px)",
        overflow: "hidden",
        padding: "4px 8px",
        borderRadius: "6px",
        border: "1px solid var(--nbllm-line)",
        background: "var(--nbllm-ground)",
        color: "var(--nbllm-text)",
        boxShadow: "0 2px 8px rgba(0, 0, 0, .18)",
        font: "12px/16px system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
        fontVariantNumeric: "tabular-nums",
        whiteSpace: "nowrap",
        zIndex: "2",
      },
    });
    root.append(this.node);
    this.shown = "";
  }

  /**
   * @param {{title: string, rows: {color: string, dash: number[], dot: boolean, label: string, value: string}[], notes: string[]}} said
   * @param {number} x where the reading line stands @param {number} y where the pointer is
   */
  show(said, x, y) {
    const { clientWidth: width, clientHeight: height } = this.root;
    const key = JSON.stringify([said, width, height]);
    if (key !== this.shown) this.fill(said, Math.max(1, Math.floor((height - 30) / 16)));
    this.shown = key;
    this.node.style.display = "block";
    const { offsetWidth, offsetHeight } = this.node;
    const left = x + 14 + offsetWidth <= width - 4 ? x + 14 : x - 14 - offsetWidth;
    const top = Math.min(y - offsetHeight / 2, height - offsetHeight - 4);
    const inside = Math.max(4, Math.min(left, width - offsetWidth - 4));
    this.node.style.transform = `translate(${Math.round(inside)}px, ${Math.round(Math.max(2, top))}px)`;
  }

  hide() {
    this.node.style.display = "none";
  }

  /** @param {Parameters<Tooltip["show"]>[0]} said @param {number} room lines below the title */
  fill({ title, rows, notes }, room) {
    const most = rows.length + notes.length > room ? Math.max(1, room - 1) : room;
    const lines = [
      ...rows.map(({ color, dash, dot, label, value }) =>
        element(
          "div",
          { style: { display: "flex", alignItems: "center", gap: "6px" } },
          swatch(color, dash, dot),
          element("span", { style: { overflow: "hidden", textOverflow: "ellipsis", flex: "1" } }, isolated(label)),
          element("b", { style: { fontWeight: "600", marginLeft: "6px" }, text: value }),
        ),
      ),
      ...notes.map((note) => {
        const style = { color: "var(--nbllm-muted)", overflow: "hidden", textOverflow: "ellipsis" };
        return element("div", { style }, isolated(note));
      }),
    ];
    const rest = lines.length - most;
    this.node.replaceChildren(
      ...(title ? [element("div", { style: { color: "var(--nbllm-muted)" }, text: title })] : []),
      ...lines.slice(0, most),
      ...(rest > 0 ? [element("div", { style: { color: "var(--nbllm-muted)" }, text: `and ${rest} more` })] : []),
    );
  }
}

const SVG = "http://www.w3.org/2000/svg";

/**
 * A short line as a series is drawn.
 * @param {string} color @param {number[]} dash @param {boolean} [dot] whether its points are marked
 * @returns {SVGElement}
 */
export function swatch(color, dash, dot = false) {
  const svg = document.createElementNS(SVG, "svg");
  for (const [name, value] of [["width", "28"], ["height", "8"], ["aria-hidden", "true"]]) svg.setAttribute(name, value);
  svg.style.flex = "none";
  const line = document.createElementNS(SVG, "path");
  line.setAttribute("d", "M0 4h28");
  line.setAttribute("stroke-dasharray", dash.join(" "));
  const parts = [line];
  if (dot) {
    const circle = document.createElementNS(SVG, "circle");
    for (const [name, value] of [["cx", "14"], ["cy", "4"], ["r", "2.7"]]) circle.setAttribute(name, value);
    circle.style.fill = "var(--nbllm-ground)";
    parts.push(circle);
  }
  for (const part of parts) {
    part.style.stroke = color;
    part.style.strokeWidth = dot ? "1.6" : "2";
  }
  line.style.fill = "none";
  svg.append(...parts);
  return svg;
}

/** Text whose direction stays its own. @param {string} text @returns {HTMLElement} */
function isolated(text) {
  return element("bdi", { text: visibleText(text).replaceAll("\n", " ") });
}

// @ts-check
/** A chart of curves on a canvas: zoom, pan, exact values under the pointer or by keyboard. */
import { css, element, formatCount, formatNumber, visibleText } from "./common.js";
import { ChartInput } from "./gestures.js";
import { drawDot, drawGrid, drawMarks, drawSeries, fitCanvas, groupMarks } from "./plot.js";
import { Tooltip, nearestPoint, neighbour, readAt, swatch } from "./reading.js";
import { scaleBetween } from "./scale.js";
import { dashesOf, extentOf, hasValues, hasWholeX, outlinesOf, rangeOf, tidySeries } from "./series.js";
import { horizontalTicks, verticalTicks } from "./ticks.js";

/** @typedef {import("./series.js").Series} Series */

const TITLE_HEIGHT = 20;
const KEYS_HELP =
  "Plus and minus zoom, arrow keys move, 0 shows all. R reads values: arrow keys go from point to point, " +
  "with Shift in larger steps, Home and End to the ends, Escape ends. " +
  "With the mouse: drag to zoom to a span, Shift and drag to move, Control and wheel to zoom, double click shows all.";

let chartsMade = 0;

export class Chart {
  /** @type {((view: [number, number] | null) => void) | null} called after the user zoomed or moved */
  onView = null;
  /** @type {Series[]} */
  #series = [];
  /** @type {import("./plot.js").Mark[]} */
  #marks = [];
  /** @type {import("./plot.js").MarkGroup[]} */
  #groups = [];
  #xAxis = { label: "step", format: formatCount };
  #log = false;
  /** @type {[number, number] | null} */
  #view = null;
  /** @type {import("./plot.js").Plot | null} as it was drawn last */
  #plot = null;
  /** @type {{x: number, y: number} | null} pixels */
  #hover = null;
  /** @type {number | null} the x that is read by keyboard */
  #cursor = null;
  /** @type {[number, number] | null} pixels */
  #selection = null;
  /** Whether the overlay has the chart's size and nothing on it. */
  #isClear = false;
  /** Width of the labels beside the plot, in pixels. */
  #gutter = 42;
  #frame = 0;
  #stale = false;
  #whole = true;

  /**
   * @param {HTMLElement} host inside an element of class "nbllm"
   * @param {{label: string, yLabel?: string, height?: number, yFormat?: (value: number) => string,
   *   compact?: boolean}} options label: its name for screen readers; yLabel: written above the axis;
   *   yFormat: values and ticks; compact: thinner lines, no legend
   */
  constructor(host, { label, yLabel = "", height = 260, yFormat, compact = false }) {
    this.host = host;
    this.label = label;
    this.height = height;
    this.compact = compact;
    this.yFormat = yFormat ?? ((value) => formatNumber(value, 5));
    this.ownFormat = yFormat;
    const layer = { position: "absolute", left: "0", top: "0", pointerEvents: "none" };
    this.canvas = element("canvas", { style: layer, "aria-hidden": "true" });
    this.overlay = element("canvas", { style: layer, "aria-hidden": "true" });
    this.legend = element("div", {
      "aria-hidden": "true",
      style: { display: "flex", gap: "4px 12px", justifyContent: "flex-end", overflow: "hidden", minWidth: "0" },
    });
    this.yTitle = element("span", { style: { flex: "none" }, text: yLabel });
    const title = element(
      "div",
      { style: { position: "absolute", inset: "0 8px auto 4px", height: `${TITLE_HEIGHT}px`, display: "flex",
        gap: "12px", justifyContent: "space-between", pointerEvents: "none", color: "var(--nbllm-muted)",
        font: "12px/18px system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", whiteSpace: "nowrap" } },
      this.yTitle,
      this.legend,
    );
    this.empty = element("div", {
      style: { position: "absolute", inset: "0", display: "none", alignItems: "center", justifyContent: "center",
        pointerEvents: "none", color: "var(--nbllm-muted)", font: "13px/1.4 system-ui, sans-serif" },
    });
    const unseen = { position: "absolute", width: "1px", height: "1px", overflow: "hidden", clipPath: "inset(50%)" };
    const id = `nbllm-chart-${++chartsMade}-${Math.random().toString(36).slice(2, 8)}`;
    const help = element("div", { id, style: unseen, text: KEYS_HELP });
    this.spoken = element("div", { style: unseen, role: "status", "aria-live": "polite" });
    this.root = element(
      "div",
      { class: "nbllm-chart", tabindex: "0", role: "application", "aria-roledescription": "chart",
        "aria-label": label, "aria-describedby": id, "data-lm-suppress-shortcuts": "true",
        style: { position: "relative", height: `${height}px`, minWidth: "0", touchAction: "pan-y pinch-zoom",
          cursor: "crosshair", userSelect: "none", outlineOffset: "2px", borderRadius: "4px" } },
      this.canvas, this.overlay, title, this.empty, help, this.spoken,
    );
    this.titled = Boolean(yLabel) || !compact;
    this.tooltip = new Tooltip(this.root);
    host.append(this.root);
    this.input = new ChartInput(this.root, this);
    this.#watch();
    this.redraw();
  }

  /** @param {Series[]} series drawn in this order */
  setSeries(series) {
    this.#series = series.map(tidySeries);
    this.#whole = this.#series.every(hasWholeX);
    this.redraw();
  }

  /** @param {import("./plot.js").Mark[]} marks */
  setMarks(marks) {
    this.#marks = marks;
    this.redraw();
  }

  /** @param {{label: string, format: (value: number) => string}} axis */
  setXAxis({ label, format }) {
    this.#xAxis = { label, format };
    this.redraw();
  }

  /** @param {boolean} log */
  setLog(log) {
    this.#log = log;
    this.redraw();
  }

  /** @param {[number, number] | null} view null: all */
  setView(view) {
    this.#view = view && view[1] > view[0] ? [view[0], view[1]] : null;
    this.redraw();
  }

  /** Draw once before the next frame, however often this is called. */
  redraw() {
    this.#stale = true;
    this.#schedule();
  }

  /** Draw at once what `redraw` or a setter has requested. */
  paint() {
    if (this.#frame > 0) cancelAnimationFrame(this.#frame);
    else if (this.#frame < 0 || !this.#stale) return;
    this.#frame = 0;
    if (this.root.clientWidth === 0) return; // drawn when ResizeObserver reports a size
    if (this.#stale) this.#draw();
    this.#stale = false;
    this.#drawOverlay();
  }

  destroy() {
    cancelAnimationFrame(this.#frame);
    this.#frame = -1;
    this.input.destroy();
    this.resizing.disconnect();
    this.theming.disconnect();
    this.darkness.removeEventListener("change", this.retheme);
    this.resolution?.removeEventListener("change", this.redensify);
    clearTimeout(this.rethemed);
    this.root.remove();
  }

  #schedule() {
    if (this.#frame !== 0) return;
    this.#frame = requestAnimationFrame(() => this.paint());
  }

  #watch() {
    this.resizing = new ResizeObserver(() => {
      this.#isClear = false;
      this.redraw();
    });
    this.resizing.observe(this.root);
    this.rethemed = 0;
    // Some themes are announced before their style sheet is loaded: draw again a little later.
    this.retheme = () => {
      this.redraw();
      clearTimeout(this.rethemed);
      this.rethemed = window.setTimeout(() => this.redraw(), 400);
    };
    this.theming = new MutationObserver(this.retheme);
    const attributeFilter = ["class", "data-theme", "data-jp-theme-light", "data-jp-theme-name"];
    for (const node of [document.documentElement, document.body]) {
      this.theming.observe(node, { attributes: true, attributeFilter });
    }
    this.darkness = matchMedia("(prefers-color-scheme: dark)");
    this.darkness.addEventListener("change", this.retheme);
    this.redensify = () => {
      this.resolution = matchMedia(`(resolution: ${devicePixelRatio}dppx)`); // moved to another screen, or zoomed
      this.resolution.addEventListener("change", this.redensify, { once: true });
      this.redraw();
    };
    this.redensify();
  }

  // The interface for ChartInput.

  /** @returns {import("./plot.js").Plot | null} */
  get plot() {
    return this.#plot;
  }

  get isZoomed() {
    return this.#view !== null;
  }

  /** The x that is read by keyboard. @returns {number | null} */
  get cursor() {
    return this.#cursor;
  }

  /** @param {{x: number, y: number} | null} place in pixels */
  hover(place) {
    this.#hover = place;
    this.#schedule();
  }

  /** @param {[number, number] | null} span in pixels */
  select(span) {
    this.#selection = span;
    this.#schedule();
  }

  /** Show low..high, kept within what there is, and say so. @param {number} low @param {number} high */
  show(low, high) {
    const [start, end] = extentOf(this.#series);
    const least = this.#whole ? Math.min(2, end - start) : (end - start) * 1e-6;
    const span = Math.max(high - low, least);
    const from = Math.max(start, Math.min((low + high - span) / 2, end - span));
    const view = /** @type {[number, number] | null} */ (span >= (end - start) * 0.999 ? null : [from, from + span]);
    if (String(view) === String(this.#view)) return;
    this.setView(view);
    this.onView?.(view);
  }

  /** @param {number} at what stays in its place @param {number} factor below 1: closer */
  zoom(at, factor) {
    const [low, high] = this.#shown();
    this.show(at - (at - low) * factor, at + (high - at) * factor);
  }

  /** @param {number} distance in units of x */
  pan(distance) {
    if (!this.#view) return;
    const [low, high] = this.#view;
    this.show(low + distance, high + distance);
  }

  showAll() {
    this.show(-Infinity, Infinity);
  }

  /** Begin to read by keyboard, in the middle of what is shown when zoomed, else at the newest point. */
  startReading() {
    const [low, high] = this.#shown();
    this.#read(this.#view ? (low + high) / 2 : high);
  }

  stopReading() {
    this.#cursor = null;
    this.spoken.textContent = "";
    this.#schedule();
  }

  /** @param {1 | -1} by @param {boolean} far a twentieth of the span, not one point */
  moveReading(by, far) {
    if (this.#cursor === null) return this.startReading();
    const [low, high] = this.#shown();
    const next = far
      ? this.#cursor + (by * (high - low)) / 20
      : neighbour(this.#series, this.#cursor, by, this.#log);
    if (next !== null) this.#read(next);
  }

  /** @param {"first" | "last"} end */
  readEnd(end) {
    this.#read(this.#shown()[end === "first" ? 0 : 1]);
  }

  /** @param {number} x */
  #read(x) {
    const nearest = this.#series
      .map((one) => [one, nearestPoint(one, x, this.#log)])
      .filter(([, index]) => index >= 0)
      .map(([one, index]) => one.x[index])
      .sort((a, b) => Math.abs(a - x) - Math.abs(b - x))[0];
    if (nearest === undefined) return;
    this.#cursor = nearest;
    const [low, high] = this.#shown();
    if (nearest < low) this.pan(nearest - low - (high - low) * 0.1);
    if (nearest > high) this.pan(nearest - high + (high - low) * 0.1);
    const reading = readAt(this.#series, nearest, 0, this.#log);
    const rows = (reading?.rows ?? []).map(({ series, x: at, y }) => {
      const elsewhere = at === nearest ? "" : ` at ${this.#xAxis.format(at)}`;
      return `${series.label} ${this.yFormat(y)}${elsewhere}`;
    });
    this.spoken.textContent = visibleText(`${this.#xName(nearest)}: ${rows.join(", ")}`);
    this.#schedule();
  }

  /** @returns {[number, number]} */
  #shown() {
    return this.#view ?? extentOf(this.#series);
  }

  /** @param {number} x */
  #xName(x) {
    return `${this.#xAxis.label} ${this.#xAxis.format(x)}`.trim();
  }

  #draw() {
    const context = fitCanvas(this.canvas, this.root, this.height);
    context.font = `11px ${getComputedStyle(this.root).fontFamily}`;
    const measure = (/** @type {string} */ text) => context.measureText(text).width;
    const lay = this.#layOut(measure);
    this.#plot = lay?.plot ?? null;
    this.#groups = lay ? groupMarks(this.#marks, lay.plot) : [];
    this.#describe();
    this.#drawLegend();
    this.empty.style.display = lay ? "none" : "flex";
    if (!lay) {
      const any = this.#series.some(hasValues);
      this.empty.textContent = !any ? "no points yet" : this.#log ? "nothing above zero to show" : "no points here";
      return;
    }
    const { plot, lines, yTicks } = lay;
    const { left, right, top, bottom } = plot;
    const [text, muted, line, ground] = ["text", "muted", "line", "ground"].map((n) => css(this.root, `--nbllm-${n}`));
    const palette = { text, muted, line, ground };
    const xTicks = horizontalTicks(plot.x, right - left, this.#xAxis.format, this.#whole, measure);
    drawGrid(context, plot, palette, xTicks, yTicks, this.#xAxis.label);
    context.save();
    context.beginPath();
    context.rect(left, top - 4, right - left, bottom - top + 6);
    context.clip();
    const dashes = dashesOf(this.#series);
    const pen = { ground, width: this.compact ? 1.25 : 1.6 };
    this.#series.forEach((one, i) => {
      drawSeries(context, plot, one, lines[i], { ...pen, color: this.#colorOf(one.color), dash: dashes[i] });
    });
    context.restore();
    drawMarks(context, plot, this.#groups, palette, (name) => (name ? this.#colorOf(name) : muted));
  }

  /**
   * Where everything goes; null where there is nothing to show.
   * @param {(text: string) => number} measure
   * @returns {{plot: import("./plot.js").Plot, lines: Int32Array[], yTicks: import("./ticks.js").Tick[]} | null}
   */
  #layOut(measure) {
    const [low, high] = this.#shown();
    const right = this.root.clientWidth - 8;
    const top = this.titled ? TITLE_HEIGHT + 4 : 8;
    const bottom = this.height - 22;
    const trace = () => outlinesOf(this.#series, low, high, right - 8 - this.#gutter, this.#log);
    const lines = trace();
    const range = rangeOf(this.#series, lines, low, high, this.#log);
    if (!range) return null;
    const y = scaleBetween(range[0], range[1], bottom, top, this.#log);
    const yTicks = verticalTicks(y, Math.max(2, (bottom - top) / 34), this.ownFormat, this.compact);
    const left = Math.ceil((Math.max(...yTicks.map(({ label }) => measure(label)), 0) + 10) / 6) * 6;
    const moved = left !== this.#gutter; // rarely: then the lines' columns are no longer those of the screen
    this.#gutter = left;
    const x = scaleBetween(low, high, left + 4, right - 4);
    return { plot: { left, right, top, bottom, x, y }, lines: moved ? trace() : lines, yTicks };
  }

  /** @param {string} variable */
  #colorOf(variable) {
    return css(this.root, variable) || css(this.root, "--nbllm-text");
  }

  #drawLegend() {
    if (this.compact) return;
    const dashes = dashesOf(this.#series);
    const all = this.#series.map(({ label, color, kind, faint, shared }, i) => ({ label, color, dash: dashes[i], dot: kind === "points", faint, shared }));
    const shown = all.filter(({ faint, shared }) => !faint && !shared);
    const shared = new Map(all.flatMap((one) => (one.shared ? [[one.shared, { ...one, label: one.shared, color: "--nbllm-muted" }]] : [])));
    shown.push(...shared.values());
    const key = JSON.stringify(shown);
    if (key === this.legend.dataset.key) return;
    this.legend.dataset.key = key;
    const entry = (/** @type {any} */ { label, color, dash, dot }) =>
      element(
        "span",
        { style: { display: "flex", alignItems: "center", gap: "5px", minWidth: "52px", overflow: "hidden" } },
        swatch(`var(${color})`, dash, dot),
        element("bdi", { style: { overflow: "hidden", textOverflow: "ellipsis" }, text: label }),
      );
    this.legend.replaceChildren(...(shown.length > 1 ? shown.map(entry) : []));
  }

  /** The newest values, for screen readers. */
  #describe() {
    const newest = this.#series
      .filter(({ faint }) => !faint || this.#series.length === 1)
      .map((one) => [one, nearestPoint(one, Infinity, false)])
      .filter(([, index]) => index >= 0)
      .map(([{ label, x, y }, index]) => `${label} ${this.yFormat(y[index])} at ${this.#xName(x[index])}`);
    const text = visibleText(`${this.label}: ${newest.join("; ") || "no points yet"}`);
    if (this.root.getAttribute("aria-label") !== text) this.root.setAttribute("aria-label", text);
  }

  #drawOverlay() {
    const plot = this.#plot;
    const isEmpty = !plot || (this.#hover === null && this.#cursor === null && this.#selection === null);
    if (isEmpty && this.#isClear) return;
    this.#isClear = isEmpty;
    const context = fitCanvas(this.overlay, this.root, this.height);
    if (isEmpty) {
      this.tooltip.hide();
      return;
    }
    if (this.#selection) {
      const [start, end] = this.#selection.map((x) => Math.max(plot.left, Math.min(plot.right, x)));
      context.fillStyle = context.strokeStyle = this.#colorOf("--nbllm-series-1");
      context.globalAlpha = 0.14;
      context.fillRect(start, plot.top, end - start, plot.bottom - plot.top);
      context.globalAlpha = 0.7;
      context.strokeRect(start + 0.5, plot.top + 0.5, end - start, plot.bottom - plot.top);
      this.tooltip.hide();
      return;
    }
    const asked = this.#hover ? plot.x.from(this.#hover.x) : /** @type {number} */ (this.#cursor);
    const reach = plot.x.from(plot.left + 24) - plot.x.from(plot.left);
    const reading = readAt(this.#series, asked, reach, this.#log);
    const group = this.#hover
      ? this.#groups.find(({ first, last }) => this.#hover.x >= first - 6 && this.#hover.x <= last + 6)
      : this.#groups.find(({ marks }) => marks.some(({ x }) => x === this.#cursor));
    if (!reading && !group) return this.tooltip.hide();
    const x = plot.x.to(reading?.x ?? asked);
    context.strokeStyle = css(this.root, "--nbllm-muted");
    context.globalAlpha = 0.7;
    context.beginPath();
    context.moveTo(Math.round(x) + 0.5, plot.top);
    context.lineTo(Math.round(x) + 0.5, plot.bottom);
    context.stroke();
    context.globalAlpha = 1;
    const dashes = dashesOf(this.#series);
    const rows = (reading?.rows ?? []).map((row) => {
      const [px, py] = [plot.x.to(row.x), plot.y.to(row.y)];
      if (px >= plot.left && px <= plot.right) drawDot(context, px, py, this.#colorOf(row.series.color), css(this.root, "--nbllm-ground"));
      const elsewhere = row.x === reading?.x ? "" : ` at ${this.#xAxis.format(row.x)}`;
      const [dash, dot] = [dashes[this.#series.indexOf(row.series)], row.series.kind === "points"];
      const away = this.#hover ? Math.abs(py - this.#hover.y) : 0;
      return { color: `var(${row.series.color})`, dash, dot, label: row.series.label + elsewhere, value: this.yFormat(row.y), away };
    });
    const most = Math.max(1, Math.floor((this.height - 46) / 16));
    if (rows.length > most) rows.sort((a, b) => a.away - b.away); // those at the pointer, where all don't fit
    const notes = (group?.marks ?? []).map(({ label }) => label).filter(Boolean);
    const said = { title: reading ? this.#xName(reading.x) : "", rows, notes };
    for (const row of rows) row.away = 0;
    this.tooltip.show(said, x, this.#hover?.y ?? plot.top + 30);
  }
}

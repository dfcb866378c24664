// @ts-check
/** Input to a chart: mouse, touch, wheel and keys. */

/**
 * @typedef {{plot: import("./plot.js").Plot | null, isZoomed: boolean, cursor: number | null,
 *   hover: (place: {x: number, y: number} | null) => void, select: (span: [number, number] | null) => void,
 *   show: (low: number, high: number) => void, zoom: (at: number, factor: number) => void,
 *   pan: (distance: number) => void, showAll: () => void, startReading: () => void, stopReading: () => void,
 *   moveReading: (by: 1 | -1, far: boolean) => void, readEnd: (end: "first" | "last") => void}} Steered
 */

const CLICK = 4; // pixels that a hand moves while it clicks

export class ChartInput {
  /** @param {HTMLElement} root @param {Steered} chart */
  constructor(root, chart) {
    this.root = root;
    this.chart = chart;
    /** @type {{pointer: number, pan: boolean, start: number, at: number} | null} */
    this.drag = null;
    this.ending = new AbortController();
    const { signal } = this.ending;
    root.addEventListener("wheel", (event) => this.onWheel(event), { passive: false, signal });
    root.addEventListener("pointerdown", (event) => this.onDown(event), { signal });
    root.addEventListener("pointermove", (event) => this.onMove(event), { signal });
    root.addEventListener("pointerup", (event) => this.onUp(event), { signal });
    root.addEventListener("pointercancel", () => this.cancel(), { signal });
    root.addEventListener("pointerleave", () => this.chart.hover(null), { signal });
    root.addEventListener("dblclick", () => this.chart.showAll(), { signal });
    root.addEventListener("keydown", (event) => this.onKey(event), { signal });
    root.addEventListener("focus", () => this.onFocus(), { signal });
    root.addEventListener("blur", () => this.onBlur(), { signal });
    // A middle click would start the browser's own scrolling.
    root.addEventListener("mousedown", (event) => event.button === 1 && event.preventDefault(), { signal });
  }

  destroy() {
    this.ending.abort();
  }

  /** @param {MouseEvent} event @returns {{x: number, y: number}} in pixels of the chart */
  place(event) {
    const box = this.root.getBoundingClientRect();
    const scale = box.width ? this.root.clientWidth / box.width : 1; // presentations zoom by transforms
    return { x: (event.clientX - box.left) * scale, y: (event.clientY - box.top) * scale };
  }

  onFocus() {
    // Said here, since notebooks' style sheets take the browser's own ring away.
    if (this.root.matches(":focus-visible")) this.root.style.outline = "2px solid var(--nbllm-series-1)";
  }

  onBlur() {
    this.root.style.outline = "none";
    this.chart.stopReading();
  }

  /** @param {WheelEvent} event */
  onWheel(event) {
    const { plot } = this.chart;
    if (!plot || !(event.ctrlKey || event.metaKey || event.shiftKey)) return; // the page scrolls
    event.preventDefault();
    const delta = (event.deltaY || event.deltaX) * (event.deltaMode === 1 ? 16 : event.deltaMode === 2 ? 400 : 1);
    const factor = Math.exp(Math.max(-0.7, Math.min(0.7, delta * (Math.abs(delta) < 30 ? 0.01 : 0.003))));
    this.chart.zoom(plot.x.from(this.place(event).x), factor);
  }

  /** @param {PointerEvent} event */
  onDown(event) {
    const { plot } = this.chart;
    if (!plot || this.drag || event.button > 1) return;
    const { x } = this.place(event);
    this.drag = { pointer: event.pointerId, pan: event.button === 1 || event.shiftKey, start: x, at: x };
    this.root.setPointerCapture(event.pointerId);
  }

  /** @param {PointerEvent} event */
  onMove(event) {
    const { plot } = this.chart;
    const { x, y } = this.place(event);
    if (!plot) return;
    if (!this.drag) {
      const inside = x >= plot.left && x <= plot.right && y >= 0 && y <= this.root.clientHeight;
      this.chart.hover(inside ? { x, y } : null);
    } else if (event.pointerId === this.drag.pointer) {
      if (this.drag.pan) {
        this.chart.pan(plot.x.from(this.drag.at) - plot.x.from(x));
        this.root.style.cursor = "grabbing";
      } else if (Math.abs(x - this.drag.start) > CLICK) this.chart.select(ordered(this.drag.start, x));
      this.drag.at = x;
    }
  }

  /** @param {PointerEvent} event */
  onUp(event) {
    const { plot } = this.chart;
    const { drag } = this;
    if (!drag || event.pointerId !== drag.pointer) return;
    this.cancel();
    const { x, y } = this.place(event);
    this.chart.hover({ x, y });
    if (!plot || drag.pan || Math.abs(x - drag.start) <= CLICK) return;
    const [low, high] = ordered(drag.start, x).map((at) => plot.x.from(Math.max(plot.left, Math.min(plot.right, at))));
    this.chart.hover(null);
    this.chart.show(low, high);
  }

  cancel() {
    this.drag = null;
    this.root.style.cursor = "crosshair";
    this.chart.select(null);
  }

  /** @param {KeyboardEvent} event */
  onKey(event) {
    if (event.target !== this.root || event.ctrlKey || event.metaKey || event.altKey) return;
    if (!this.obey(event.key, event.shiftKey)) return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** @param {string} key @param {boolean} shift @returns {boolean} whether the key means something here */
  obey(key, shift) {
    const { chart } = this;
    const { plot } = chart;
    if (!plot) return false;
    const { low, high } = plot.x;
    const reading = chart.cursor !== null;
    const at = chart.cursor ?? (low + high) / 2;
    if (key === "+" || key === "=") chart.zoom(at, 1 / 1.6);
    else if (key === "-" || key === "_") chart.zoom(at, 1.6);
    else if (key === "0" || (key === "Home" && !reading)) chart.showAll();
    else if (key === "r" || key === "R") reading ? chart.stopReading() : chart.startReading();
    else if (key === "Home" || key === "End") chart.readEnd(key === "Home" ? "first" : "last");
    else if (key === "Escape" && (reading || this.drag)) {
      this.cancel();
      chart.stopReading();
    } else if (key === "ArrowLeft" || key === "ArrowRight") {
      const by = key === "ArrowLeft" ? -1 : 1;
      if (chart.isZoomed && !reading) chart.pan(by * (high - low) * (shift ? 0.5 : 0.1));
      else chart.moveReading(by, shift);
    } else return false;
    return true;
  }
}

/** @param {number} a @param {number} b @returns {[number, number]} */
function ordered(a, b) {
  return a < b ? [a, b] : [b, a];
}

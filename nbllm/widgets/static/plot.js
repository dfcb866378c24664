// @ts-check
/** What a chart draws on its canvas: grid and ticks, lines, marks. */

/**
 * @typedef {{left: number, right: number, top: number, bottom: number, x: import("./scale.js").Scale,
 *   y: import("./scale.js").Scale}} Plot the part of the canvas where the lines are, in CSS pixels
 * @typedef {{text: string, muted: string, line: string, ground: string}} Palette
 * @typedef {{x: number, label: string, kind: "action" | "checkpoint" | "rule" | "fork", color?: string}} Mark
 * @typedef {{at: number, first: number, last: number, marks: Mark[], kind: string, color: string | undefined}} MarkGroup
 */

/**
 * Give a canvas the size of `root` on this screen, and clear it.
 * @param {HTMLCanvasElement} canvas @param {HTMLElement} root @param {number} height
 * @returns {CanvasRenderingContext2D}
 */
export function fitCanvas(canvas, root, height) {
  const ratio = devicePixelRatio || 1;
  const width = root.clientWidth;
  const [columns, rows] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== columns || canvas.height !== rows) {
    canvas.width = columns;
    canvas.height = rows;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
  }
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  context.globalAlpha = 1;
  return context;
}

/**
 * Grid lines and the texts beside them.
 * @param {CanvasRenderingContext2D} context @param {Plot} plot @param {Palette} palette
 * @param {{value: number, label: string}[]} xTicks @param {{value: number, label: string}[]} yTicks
 * @param {string} xLabel written at the right end of the axis; ticks that it would cover are left out
 */
export function drawGrid(context, plot, palette, xTicks, yTicks, xLabel) {
  const { left, right, bottom } = plot;
  context.lineWidth = 1;
  context.textBaseline = "middle";
  context.textAlign = "right";
  for (const { value, label } of yTicks) {
    const y = Math.round(plot.y.to(value)) + 0.5;
    context.strokeStyle = palette.line;
    context.globalAlpha = 0.55;
    segment(context, left, y, right, y);
    context.globalAlpha = 1;
    context.fillStyle = palette.muted;
    context.fillText(label, left - 6, y);
  }
  context.strokeStyle = palette.line;
  segment(context, left, bottom + 0.5, right, bottom + 0.5);
  context.textBaseline = "alphabetic";
  const baseline = bottom + 16;
  context.fillText(xLabel, right, baseline);
  const end = right - context.measureText(xLabel).width - (xLabel ? 10 : 0);
  context.textAlign = "left";
  for (const { value, label } of xTicks) {
    const x = plot.x.to(value);
    const width = context.measureText(label).width;
    const start = Math.max(Math.min(x - width / 2, right - width), 2);
    segment(context, Math.round(x) + 0.5, bottom + 1, Math.round(x) + 0.5, bottom + 4);
    if (start + width <= end) context.fillText(label, start, baseline);
  }
}

/** @param {CanvasRenderingContext2D} context @param {number} x0 @param {number} y0 @param {number} x1 @param {number} y1 */
function segment(context, x0, y0, x1, y1) {
  context.beginPath();
  context.moveTo(x0, y0);
  context.lineTo(x1, y1);
  context.stroke();
}

/**
 * One series: its line, and dots where it has points of its own or a point stands alone.
 * @param {CanvasRenderingContext2D} context clipped to the plot
 * @param {Plot} plot
 * @param {{x: ArrayLike<number>, y: ArrayLike<number>, kind: "line" | "points", faint?: boolean}} series
 * @param {Int32Array} indexes of `outline`
 * @param {{color: string, ground: string, width: number, dash: number[]}} pen
 */
export function drawSeries(context, plot, { x, y, kind, faint }, indexes, pen) {
  const width = plot.right - plot.left;
  const points = new Float64Array(2 * indexes.length);
  let travelled = 0;
  for (let i = 0; i < indexes.length; i++) {
    const index = indexes[i];
    points[2 * i] = index < 0 ? NaN : plot.x.to(x[index]);
    points[2 * i + 1] = index < 0 ? NaN : plot.y.to(y[index]);
    if (i > 0) travelled += Math.abs(points[2 * i + 1] - points[2 * i - 1]) || 0;
  }
  const restless = travelled > 4 * width; // mostly up and down: dashes would be noise
  context.globalAlpha = faint ? 0.4 : 1;
  context.strokeStyle = context.fillStyle = pen.color;
  context.lineWidth = faint ? Math.min(1, pen.width) : pen.width;
  if (restless && indexes.length > 2 * width) fillColumns(context, points);
  else {
    context.lineJoin = "round";
    context.setLineDash(restless ? [] : pen.dash);
    strokeLine(context, points);
    context.setLineDash([]);
  }
  const roomy = kind === "points" && indexes.length * 7 < width;
  if (kind === "points") context.fillStyle = pen.ground;
  for (let i = 0; i < points.length; i += 2) {
    const alone = !Number.isFinite(points[i - 2]) && !Number.isFinite(points[i + 2]);
    if (Number.isNaN(points[i]) || !(roomy || alone)) continue;
    context.beginPath();
    context.arc(points[i], points[i + 1], kind === "points" ? 3 : 2.5, 0, 2 * Math.PI);
    context.fill();
    if (kind === "points") context.stroke();
  }
  context.globalAlpha = 1;
}

/** @param {CanvasRenderingContext2D} context @param {Float64Array} points x and y in turn; NaN: a gap */
function strokeLine(context, points) {
  context.beginPath();
  let down = false;
  for (let i = 0; i < points.length; i += 2) {
    const there = !Number.isNaN(points[i]);
    if (there && down) context.lineTo(points[i], points[i + 1]);
    else if (there) context.moveTo(points[i], points[i + 1]);
    down = there;
  }
  context.stroke();
}

/**
 * What a line covers that goes up and down within every column of pixels: one bar a column. Many times faster than
 * to stroke it.
 * @param {CanvasRenderingContext2D} context @param {Float64Array} points as in `strokeLine`
 */
function fillColumns(context, points) {
  const half = context.lineWidth / 2;
  let [column, top, bottom, lastX, last] = [NaN, NaN, NaN, NaN, NaN];
  context.beginPath();
  const flush = () => {
    if (top <= bottom) context.fillRect(column, top - half, 1, bottom - top + 2 * half);
  };
  for (let i = 0; i < points.length; i += 2) {
    const y = points[i + 1];
    const at = Math.floor(points[i]);
    if (at === column) {
      if (y < top) top = y;
      else if (y > bottom) bottom = y;
    } else {
      const beside = at === column + 1;
      const from = beside ? (last + y) / 2 : y; // each of two neighbours goes half way to the other
      if (beside) [top, bottom] = [Math.min(top, from), Math.max(bottom, from)];
      flush();
      if (at > column + 1) {
        context.moveTo(lastX, last);
        context.lineTo(points[i], y);
      }
      [column, top, bottom] = [at, Math.min(from, y), Math.max(from, y)];
    }
    [lastX, last] = [points[i], y];
  }
  flush();
  context.stroke();
}

const IMPORTANCE = ["checkpoint", "rule", "action", "fork"];

/**
 * Marks in view, those that stand within `room` pixels of one another together.
 * @param {Mark[]} marks @param {Plot} plot @param {number} [room] @returns {MarkGroup[]} from left to right
 */
export function groupMarks(marks, plot, room = 9) {
  /** @type {MarkGroup[]} */
  const groups = [];
  const placed = marks.map((mark) => ({ mark, at: plot.x.to(mark.x) }));
  placed.sort((a, b) => a.at - b.at);
  for (const { mark, at } of placed) {
    if (!(at >= plot.left - 0.5 && at <= plot.right + 0.5)) continue;
    const group = groups.at(-1);
    if (!group || at - group.first > room) {
      groups.push({ at, first: at, last: at, marks: [mark], kind: mark.kind, color: mark.color });
      continue;
    }
    group.marks.push(mark);
    group.last = at;
    if (IMPORTANCE.indexOf(mark.kind) > IMPORTANCE.indexOf(group.kind)) {
      Object.assign(group, { kind: mark.kind, color: mark.color, at });
    }
  }
  return groups;
}

/**
 * Marks: a thin line through the plot (checkpoints have none) and a symbol on the axis.
 * @param {CanvasRenderingContext2D} context @param {Plot} plot @param {MarkGroup[]} groups
 * @param {Palette} palette @param {(variable: string | undefined) => string} colorOf
 */
export function drawMarks(context, plot, groups, palette, colorOf) {
  context.lineWidth = 1;
  for (const group of groups) {
    const color = colorOf(group.color);
    const x = Math.round(group.at) + 0.5;
    context.strokeStyle = context.fillStyle = color;
    if (group.kind === "checkpoint") {
      context.globalAlpha = 0.8;
      segment(context, x, plot.bottom - 5, x, plot.bottom);
      context.globalAlpha = 1;
      continue;
    }
    context.globalAlpha = 0.4;
    context.setLineDash([2, 3]);
    segment(context, x, plot.top, x, plot.bottom - 8);
    context.setLineDash([]);
    context.globalAlpha = 1;
    drawSymbol(context, group.kind, x, plot.bottom - 4, palette.ground);
    const others = group.marks.filter((mark) => mark.kind !== "checkpoint").length;
    if (others > 1) {
      context.textAlign = x > plot.right - 20 ? "right" : "left";
      context.textBaseline = "alphabetic";
      context.fillText(String(others), x + (x > plot.right - 20 ? -7 : 7), plot.bottom - 2);
    }
  }
}

/** @param {CanvasRenderingContext2D} context @param {string} kind @param {number} x @param {number} y @param {string} ground */
function drawSymbol(context, kind, x, y, ground) {
  context.beginPath();
  if (kind === "rule") {
    context.moveTo(x, y - 4.5);
    context.lineTo(x + 4.5, y);
    context.lineTo(x, y + 4.5);
    context.lineTo(x - 4.5, y);
    context.closePath();
  } else if (kind === "fork") {
    context.arc(x, y, 4, 0, 2 * Math.PI);
  } else {
    context.moveTo(x - 4.5, y + 4);
    context.lineTo(x + 4.5, y + 4);
    context.lineTo(x, y - 4.5);
    context.closePath();
  }
  if (kind === "fork") {
    context.lineWidth = 2;
    context.save();
    context.fillStyle = ground;
    context.fill();
    context.restore();
    context.stroke();
    context.lineWidth = 1;
  } else context.fill();
}

/**
 * The point that is read.
 * @param {CanvasRenderingContext2D} context @param {number} x @param {number} y
 * @param {string} color @param {string} ground
 */
export function drawDot(context, x, y, color, ground) {
  context.beginPath();
  context.arc(x, y, 3.5, 0, 2 * Math.PI);
  context.fillStyle = color;
  context.strokeStyle = ground;
  context.lineWidth = 1.5;
  context.fill();
  context.stroke();
  context.lineWidth = 1;
}

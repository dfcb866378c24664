// @ts-check
/** What every panel needs: elements without HTML, numbers as nbllm/core/quantities.py writes them, columns. */

// What a browser would obey, hide or refuse instead of showing, as in nbllm/core/html.py.
const UNSEEN =
  /[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]/gu;

/**
 * `text` with every control and reordering character replaced by U+FFFD, CRLF by a newline.
 * @param {unknown} text @returns {string}
 */
export function visibleText(text) {
  return String(text).replaceAll("\r\n", "\n").replace(UNSEEN, "\ufffd");
}

/** Attributes that work only as properties, or only until the user types. */
const LIVE_PROPERTIES = new Set(["value", "checked", "indeterminate"]);

/**
 * Build an element. Text arrives through `textContent` and text nodes only: it is never parsed as HTML. Texts and
 * attributes go through `visibleText`; a `value` stays as it is.
 *
 * Of `props`: a function under "onclick" and the like is a listener; `text` is the text; `class`, `style` (an object,
 * custom properties too) and `dataset` are meant as they are called; null and undefined are left out; true and false
 * are there or not, except for `aria-*`, which says "true" or "false"; all else is an attribute.
 *
 * @param {string} tag
 * @param {Record<string, any> | null} [props]
 * @param {...any} children nodes, texts, arrays of these; null, undefined and false are left out
 * @returns {any} an HTMLElement; `any`, since the tag decides which
 */
export function element(tag, props, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) setProperty(node, name, value);
  for (const child of children.flat(Infinity)) {
    if (child == null || child === false) continue;
    node.append(child instanceof Node ? child : visibleText(child));
  }
  return node;
}

/** @param {any} node @param {string} name @param {any} value */
function setProperty(node, name, value) {
  const lower = name.toLowerCase();
  if (value == null) return;
  if (lower.startsWith("on")) {
    if (typeof value !== "function") throw new TypeError(`${name}: a listener must be a function`);
    node.addEventListener(lower.slice(2), value);
  } else if (lower === "innerhtml" || lower === "outerhtml" || lower === "srcdoc") {
    throw new TypeError(`${name} would be parsed as HTML: use text or children`);
  } else if (name === "text" || name === "textContent") node.textContent = visibleText(value);
  else if (name === "style" && typeof value === "object") {
    for (const [key, text] of Object.entries(value)) {
      if (text == null) continue;
      if (key.startsWith("--")) node.style.setProperty(key, String(text));
      else node.style[key] = text;
    }
  } else if (name === "dataset") Object.assign(node.dataset, value);
  else if (LIVE_PROPERTIES.has(name)) node[name] = value;
  else if (lower.startsWith("aria-")) node.setAttribute(name, visibleText(value));
  else if (value !== false) {
    const attribute = name === "className" ? "class" : name === "htmlFor" ? "for" : name;
    node.setAttribute(attribute, value === true ? "" : visibleText(value));
  }
}

/**
 * For "focusin": JupyterLab's keys, such as D D for "delete the cell", are not meant for a panel. It looks for this mark
 * on what has the focus, not on what is around it.
 * @param {any} event
 */
export function suppressShortcuts(event) {
  event.target.setAttribute("data-lm-suppress-shortcuts", "true");
}

/**
 * The value of a CSS variable where `host` stands.
 * @param {Element} host @param {string} variable such as "--nbllm-text" @returns {string}
 */
export function css(host, variable) {
  return getComputedStyle(host).getPropertyValue(variable).trim();
}

/**
 * A box for what went wrong, hidden while nothing did.
 * @returns {{node: HTMLElement, show: (problem: unknown) => void, clear: () => void}}
 */
export function errorBox() {
  const text = element("span");
  const clear = () => {
    node.hidden = true;
    text.textContent = "";
  };
  const close = element("button", { type: "button", onclick: clear, "aria-label": "Dismiss", text: "×" });
  const node = element("div", { class: "nbllm-error bad", role: "alert", hidden: true }, text, " ", close);
  /** @param {unknown} problem */
  const show = (problem) => {
    const said = visibleText(problem instanceof Error ? problem.message : problem);
    if (!node.hidden && text.textContent === said) return;
    text.textContent = said;
    node.hidden = false;
  };
  return { node, show, clear };
}

/**
 * `value` with `digits` significant digits; whole numbers keep all of theirs, in groups of three.
 * As `number` of quantities.py; what is missing (null, undefined) is a dash.
 * @param {number | null | undefined} value @param {number} [digits] @returns {string}
 */
export function formatNumber(value, digits = 4) {
  if (value == null) return "–";
  if (!Number.isFinite(value)) return nonFinite(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e15) return grouped(String(Math.abs(value)), value < 0);
  const magnitude = Math.floor(Math.log10(Math.abs(value)));
  if (-5 <= magnitude && magnitude < digits) {
    const [whole, part] = withoutZeros(fixedEven(Math.abs(value), digits - 1 - magnitude)).split(".");
    return grouped(whole, value < 0) + (part ? `.${part}` : "");
  }
  if (digits <= magnitude && magnitude < 15) return grouped(fixedEven(Math.abs(value), 0), value < 0);
  return exponential(value, digits - 1);
}

/**
 * How many of something: whole, in groups of three.
 * @param {number | null | undefined} value @returns {string}
 */
export function formatCount(value) {
  return formatNumber(value == null ? value : Math.trunc(value));
}

/**
 * Bytes in decimal units, as `size` of quantities.py.
 * @param {number | null | undefined} bytes @returns {string}
 */
export function formatBytes(bytes) {
  if (bytes == null) return "–";
  if (!Number.isFinite(bytes)) return nonFinite(bytes);
  const units = /** @type {[string, number][]} */ ([["TB", 1e12], ["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]);
  const unit = units.find(([, scale]) => bytes >= 0.9995 * scale);  // three digits of just below: "1e+03"
  return unit ? `${general(bytes / unit[1], 3)} ${unit[0]}` : `${Math.trunc(bytes)} B`;
}

const LONGEST = 1e11; // seconds, beyond which days are rounded

/**
 * Seconds in the two largest fitting units, as `duration` of quantities.py.
 * @param {number | null | undefined} seconds @returns {string}
 */
export function formatDuration(seconds) {
  if (seconds == null) return "–";
  if (!Number.isFinite(seconds)) return nonFinite(seconds);
  if (seconds > LONGEST) return `${general(seconds / 86400, 2)} d`;
  if (seconds < 60) return `${seconds < 9.5 ? general(seconds, 2) : fixedEven(seconds, 0)} s`;
  const whole = Number(fixedEven(seconds, 0));
  const pairs = /** @type {[number, number, string, string][]} */ ([
    [86400, 3600, "d", "h"],
    [3600, 60, "h", "min"],
    [60, 1, "min", "s"],
  ]);
  for (const [large, small, major, minor] of pairs) {
    if (whole < large) continue;
    const rest = Math.floor((whole % large) / small);
    return `${Math.floor(whole / large)} ${major}${rest ? ` ${rest} ${minor}` : ""}`;
  }
  return `${whole} s`;
}

/** @param {number} value @returns {string} */
function nonFinite(value) {
  return Number.isNaN(value) ? "nan" : value > 0 ? "inf" : "-inf";
}

/** @param {string} digits @param {boolean} negative @returns {string} */
function grouped(digits, negative) {
  return (negative ? "-" : "") + digits.replace(/\B(?=(\d{3})+$)/g, ",");
}

/** @param {string} text @returns {string} */
function withoutZeros(text) {
  return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
}

/** `toFixed`, but an exact tie goes to the even digit, as in Python. @param {number} value @param {number} decimals */
function fixedEven(value, decimals) {
  const exact = value.toFixed(decimals + 30);
  if (!exact.endsWith(`5${"0".repeat(29)}`)) return value.toFixed(decimals);
  const down = exact.slice(0, -30).replace(/\.$/, "");
  return "02468".includes(down.at(-1) ?? "") ? down : value.toFixed(decimals);
}

/** A number as Python's "e" writes it, without idle zeros. @param {number} value @param {number} decimals */
function exponential(value, decimals) {
  let [mantissa, exponent] = value.toExponential(decimals).split("e");
  const exact = value.toExponential(decimals + 30).split("e");
  if (exact[0].endsWith(`5${"0".repeat(29)}`)) {
    const down = exact[0].slice(0, -30).replace(/\.$/, "");
    if ("02468".includes(down.at(-1) ?? "")) [mantissa, exponent] = [down, exact[1]];
  }
  return `${withoutZeros(mantissa)}e${exponent[0]}${exponent.slice(1).padStart(2, "0")}`;
}

/** A number as Python's "g" writes it. @param {number} value @param {number} digits @returns {string} */
function general(value, digits) {
  if (value === 0) return "0";
  const text = exponential(value, digits - 1);
  const magnitude = Number(text.split("e")[1]);
  if (magnitude < -4 || magnitude >= digits) return text;
  return withoutZeros(fixedEven(value, digits - 1 - magnitude));
}

const COLUMN_TYPES = { float64: Float64Array, float32: Float32Array };

/**
 * Columns as they travel: a description each, and a buffer each, in the same order.
 *
 * @param {{name: string, dtype: string, length: number}[]} columns
 * @param {(DataView | ArrayBuffer | Uint8Array)[]} buffers
 * @returns {Record<string, Float32Array | Float64Array>} by name; the object has no prototype, so any name is safe
 * @throws {Error} where description and bytes disagree, or the columns are not equally long
 */
export function decodeColumns(columns, buffers) {
  if (columns.length !== buffers.length) {
    throw new Error(`${columns.length} columns are described, but ${buffers.length} buffers came`);
  }
  /** @type {Record<string, Float32Array | Float64Array>} */
  const decoded = Object.create(null);
  columns.forEach(({ name, dtype, length }, i) => {
    if (!Object.hasOwn(COLUMN_TYPES, dtype)) throw new Error(`column ${name}: unknown type ${dtype}`);
    const type = COLUMN_TYPES[/** @type {"float64" | "float32"} */ (dtype)];
    const bytes = buffers[i];
    const [buffer, offset] = ArrayBuffer.isView(bytes) ? [bytes.buffer, bytes.byteOffset] : [bytes, 0];
    if (bytes.byteLength !== length * type.BYTES_PER_ELEMENT) {
      throw new Error(`column ${name}: ${length} values of ${dtype} cannot be ${bytes.byteLength} bytes`);
    }
    if (length !== columns[0].length) throw new Error(`column ${name}: ${length} values, not ${columns[0].length}`);
    if (name in decoded) throw new Error(`column ${name} came twice`);
    const aligned = offset % type.BYTES_PER_ELEMENT === 0;
    decoded[name] = aligned
      ? new type(buffer, offset, length)
      : new type(buffer.slice(offset, offset + bytes.byteLength));
  });
  return decoded;
}

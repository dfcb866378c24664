// @ts-check
/** Changing a page as little as possible: what the user has typed, chosen or focused stays. */
import { element, visibleText } from "./common.js";

/**
 * @typedef {{ui: Look, session: import("./session.js").Session, requests: import("./requests.js").Requests,
 *   key: string, guarded: (listener: (event?: any) => any) => (event?: any) => void, redraw: () => void,
 *   ask: (action: string, args?: Record<string, any>) => import("./requests.js").Request | null,
 *   announce: (text: string) => void, focusOn: (key: string) => void}} PanelContext
 * @typedef {{focus: string, axis: "step" | "tokens" | "seconds", view: [number, number] | null, log: boolean,
 *   smoothing: number, hidden: Set<string>, open: Map<string, boolean>, drafts: Map<string, string>,
 *   chosen: Map<string, number>, extra: Map<string, string[]>}} Look
 *   how the user has arranged the panel; it outlives the view
 */

/** @param {any} node @param {unknown} text */
export function setText(node, text) {
  const shown = visibleText(text ?? "");
  if (node.textContent !== shown) node.textContent = shown;
}

/** @param {any} node @param {string} name @param {unknown} value null: take it away */
export function setAttribute(node, name, value) {
  if (value == null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== visibleText(value)) node.setAttribute(name, visibleText(value));
}

/** @param {any} node @param {boolean} shown */
export function setShown(node, shown) {
  if (node.hidden === shown) node.hidden = !shown;
}

/**
 * Make the children of `host` one for each item, keeping those that are there.
 * @template T
 * @param {HTMLElement} host @param {T[]} items @param {(item: T) => string} keyOf
 * @param {(item: T) => HTMLElement} make @param {(node: any, item: T) => void} [update]
 */
export function keyed(host, items, keyOf, make, update = () => {}) {
  /** @type {Map<string, any>} */
  const there = new Map(Array.from(host.children, (node) => [/** @type {any} */ (node).nbllmKey, node]));
  /** @type {Map<string, T>} */
  const wanted = new Map();
  for (const item of items) {
    let key = keyOf(item);
    while (wanted.has(key)) key += "\n";
    wanted.set(key, item);
  }
  // First, so that what stays need not be moved: what is moved loses the focus.
  for (const [key, node] of there) if (!wanted.has(key)) node.remove();
  let place = host.firstElementChild;
  for (const [key, item] of wanted) {
    const node = there.get(key) ?? Object.assign(make(item), { nbllmKey: key });
    update(node, item);
    if (node === place) place = place.nextElementSibling;
    else host.insertBefore(node, place);
  }
}

const SHAPES = {
  pause: "M4 2.5h3v11H4zM9 2.5h3v11H9z",
  play: "M4 2.2v11.6L13.4 8z",
  stop: "M3.2 3.2h9.6v9.6H3.2z",
  save: "M7 1.5h2v6h3L8 11.8 4 7.5h3zM2 13h12v1.6H2z",
  evaluate: "M2 13h12v1.6H2zM2.6 8h2.2v4H2.6zM6.9 4.5h2.2V12H6.9zM11.2 1.5h2.2V12h-2.2z",
  rewind: "M8 3v4.2L14 3v10L8 8.8V13L1.5 8z",
  fork: "M3.5 1h3v3H6v2.2l2 1.3 2-1.3V4h-.5V1h3v3h-.8v3L8.8 9v2.5h.7v3h-3v-3h.7V9L4.3 7V4h-.8z",
  eye: "M8 3.2c3.4 0 6 2.6 7.2 4.8C14 10.2 11.4 12.8 8 12.8S2 10.2.8 8C2 5.8 4.6 3.2 8 3.2zm0 1.9a2.9 2.9 0 1 0 0 5.8 2.9 2.9 0 0 0 0-5.8z",
};

/** @param {keyof typeof SHAPES} shape @returns {SVGElement} */
export function icon(shape) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", "nbllm-icon");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", SHAPES[shape]);
  svg.append(path);
  return svg;
}

/**
 * A button that can say why it does nothing: it stays reachable, and says it when pressed.
 * @param {PanelContext} panel
 * @param {{label: string, line: import("./outcome.js").OutcomeLine, shape?: keyof typeof SHAPES, class?: string,
 *   press: () => void}} options line: where it says it
 */
export function pushButton(panel, { label, line, shape, class: kind = "", press }) {
  const text = element("span", { text: label });
  const node = element("button", { type: "button", class: `nbllm-button ${kind}` }, shape && icon(shape), text);
  let [blocked, busy, shown] = ["", false, shape];
  const pressed = () => {
    if (blocked) line.say(blocked);
    else if (!busy) press();
  };
  node.addEventListener("click", panel.guarded(pressed));
  return {
    node,
    /** As if it were clicked, for the Enter key in a field beside it. */
    press: pressed,
    /** @param {string} said @param {keyof typeof SHAPES} [drawn] */
    name(said, drawn = shown) {
      setText(text, said);
      if (drawn && drawn !== shown) node.firstChild.replaceWith(icon(drawn));
      shown = drawn;
    },
    /** @param {string} reason why it cannot be pressed; "": it can @param {boolean} [waits] it has been pressed */
    block(reason, waits = false) {
      [blocked, busy] = [reason, waits];
      setAttribute(node, "aria-disabled", reason ? "true" : null);
      setAttribute(node, "title", reason || null);
      setAttribute(node, "aria-description", reason || null);
      setAttribute(node, "aria-busy", waits ? "true" : null);
    },
  };
}

/**
 * A field for text whose half-typed content belongs to a run and survives updates and views.
 * @param {PanelContext} panel @param {string} name of the field @param {any} node input or textarea
 * @param {() => void} [edited] called while a person types
 */
export function draftField(panel, name, node, edited = () => {}) {
  let [run, fallback] = ["", ""];
  const key = () => `${run}\n${name}`;
  const show = () => {
    const text = panel.ui.drafts.get(key()) ?? fallback;
    if (node.value !== text) node.value = text;
  };
  node.addEventListener(
    "input",
    panel.guarded(() => {
      panel.ui.drafts.set(key(), node.value);
      edited();
    }),
  );
  return {
    node,
    /** @param {string} of the run it is about now @param {string} [text] shown until the user types */
    show(of, text = "") {
      [run, fallback] = [of, text];
      show();
    },
    /** What the user has typed; null: nothing. @returns {string | null} */
    get typed() {
      return panel.ui.drafts.get(key()) ?? null;
    },
    /** @param {string} text as if it had been typed */
    type(text) {
      panel.ui.drafts.set(key(), text);
      show();
    },
    clear() {
      panel.ui.drafts.delete(key());
      show();
    },
  };
}

/**
 * Details that stay open or closed as the user left them.
 * @param {PanelContext} panel @param {string} name @param {any} summary @param {...any} children
 */
export function disclosure(panel, name, summary, ...children) {
  const node = element("details", { class: "nbllm-details" }, element("summary", null, summary), children);
  node.open = panel.ui.open.get(name) ?? false;
  node.addEventListener("toggle", () => {
    panel.ui.open.set(name, node.open);
    panel.redraw();
  });
  return node;
}

/** Call `listener` once for every answer, until `end` is called. @param {PanelContext} panel
 * @param {(request: import("./requests.js").Request) => void} listener @returns {() => void} end */
export function onAnswers(panel, listener) {
  const { listeners } = panel.requests;
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** @param {string} text @returns {number} the number that the user has typed; NaN: none */
export function typedNumber(text) {
  return text.trim() === "" ? NaN : Number(text.trim());
}

/** @param {number | null | undefined} seconds unix @returns {string} the time of day, with the date unless it is today */
export function clock(seconds) {
  if (seconds == null || !Number.isFinite(seconds)) return "–";
  const time = new Date(seconds * 1000);
  if (Number.isNaN(time.getTime())) return "?";
  const two = (/** @type {number} */ part) => String(part).padStart(2, "0");
  const hour = `${two(time.getHours())}:${two(time.getMinutes())}`;
  if (time.toDateString() === new Date().toDateString()) return `${hour}:${two(time.getSeconds())}`;
  return `${time.getFullYear()}-${two(time.getMonth() + 1)}-${two(time.getDate())} ${hour}`;
}

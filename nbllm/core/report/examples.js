// @ts-check
/**
 * The browser of a report's examples: a table that is filtered, sorted and paged, of which only one page is in the
 * document. It needs nothing else: a saved page and the notebook's panel run the same file. Every text is text of data
 * or of a model: it arrives through `textContent` alone.
 */

/**
 * @typedef {string | number | boolean | null} Cell
 * @typedef {{name: string, values?: any[], levels?: Cell[], same?: [number, number]}} Column
 *   levels: its different values, of which `values` are indices; same: as another table's column
 * @typedef {{title: string, unit: string, columns: Column[], cluster: string, flips: number[]}} Table
 */

const PAGE = 25; // rows
const SHORT = 140; // characters of a cell
const MOST_COMPARED = 400; // words of a prediction that are compared with the reference
const UNSEEN = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]/gu;

/** @param {unknown} text */
const visible = (text) => String(text).replaceAll("\r\n", "\n").replace(UNSEEN, "\ufffd");

/** @param {string} tag @param {Record<string, any>} [props] @param {...any} children @returns {any} */
function make(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "value") /** @type {any} */ (node).value = value;
    else node.setAttribute(name, visible(value));
  }
  for (const child of children) if (child != null) node.append(child instanceof Node ? child : visible(child));
  return node;
}

/** @param {any} value @returns {string} */
function textOf(value) {
  if (value == null) return "\u2013";
  if (Array.isArray(value)) return value.map(textOf).join(" \u00b7 ");
  if (typeof value === "number" && !Number.isInteger(value)) return String(+value.toPrecision(4));
  return typeof value === "boolean" ? (value ? "yes" : "no") : String(value);
}

/** @param {string} text */
const shortened = (text) => (text.length > SHORT ? `${text.slice(0, SHORT - 1)}\u2026` : text);

/** The columns of a table as functions of the row. @param {Table[]} tables @param {Table} table */
function readers(tables, table) {
  return table.columns.map((given) => {
    const column = given.same ? { ...tables[given.same[0]].columns[given.same[1]], name: given.name } : given;
    const { values = [], levels } = column;
    return {
      name: column.name,
      levels,
      length: values.length,
      /** @param {number} row @returns {any} */
      at: levels ? (row) => levels[values[row]] : (row) => values[row],
    };
  });
}

/** Words of `text` that `other` has too, in the same order. @param {string[]} text @param {string[]} other */
function common(text, other) {
  const [n, m] = [text.length, other.length];
  const longest = Array.from({ length: n + 1 }, () => new Uint16Array(m + 1));
  for (let i = n - 1; i >= 0; i--)
    for (let j = m - 1; j >= 0; j--)
      longest[i][j] =
        text[i] === other[j] ? longest[i + 1][j + 1] + 1 : Math.max(longest[i + 1][j], longest[i][j + 1]);
  const kept = new Set();
  for (let [i, j] = [0, 0]; i < n && j < m; ) {
    if (text[i] === other[j]) [kept.add(i++), j++];
    else if (longest[i + 1][j] >= longest[i][j + 1]) i++;
    else j++;
  }
  return kept;
}

/** A prediction whose words are marked where the reference has them. @param {string} text @param {string} reference */
function compared(text, reference) {
  const parts = text.split(/(\s+)/);
  const words = parts.filter((_, i) => i % 2 === 0);
  const others = reference.split(/\s+/);
  if (words.length > MOST_COMPARED || others.length > MOST_COMPARED) return make("span", {}, text);
  const kept = common(words, others);
  return make(
    "span",
    {},
    ...parts.map((part, i) => (i % 2 || !part ? part : make("span", { class: kept.has(i / 2) ? "good" : "bad" }, part))),
  );
}

/**
 * Show tables of examples in `host`.
 * @param {HTMLElement} host @param {{tables: Table[]}} data
 */
function browse(host, { tables }) {
  /** @type {{table: number, page: number, sort: number | null, down: boolean, open: Set<number>}} */
  const look = { table: 0, page: 0, sort: null, down: false, open: new Set() };
  let columns = readers(tables, tables[0]);
  /** @type {number[]} */
  let order = [];

  const choice = make("select", { "aria-label": "Which examples", onchange: () => choose(Number(choice.value)) });
  tables.forEach((table, i) => choice.append(make("option", { value: i }, table.title)));
  const search = make("input", { type: "search", placeholder: "find a text", "aria-label": "Find a text", oninput: later });
  const outcome = make("select", { "aria-label": "Outcome", onchange: filter });
  const group = make("select", { "aria-label": "Group", onchange: filter });
  const count = make("span", { class: "muted", role: "status" });
  const body = make("div", { class: "nbllm-scroll" });
  const back = make("button", { type: "button", onclick: () => turn(-1) }, "\u2039 previous");
  const on = make("button", { type: "button", onclick: () => turn(1) }, "next \u203a");
  const place = make("span", { class: "muted" });
  host.replaceChildren(
    make("div", { class: "nbllm-controls" }, tables.length > 1 ? choice : null, search, outcome, group, count),
    body,
    make("div", { class: "nbllm-controls" }, back, place, on),
  );

  let waiting = 0;
  function later() {
    clearTimeout(waiting);
    waiting = setTimeout(filter, 120);
  }

  /** @param {string} name */
  const named = (name) => columns.find((column) => column.name === name);

  /** @param {number} index */
  function choose(index) {
    Object.assign(look, { table: index, page: 0, sort: null, down: false, open: new Set() });
    const table = tables[index];
    columns = readers(tables, table);
    const outcomes = [["", "all"]];
    if (named("correct")) outcomes.push(["right", "right"], ["wrong", "wrong"]);
    if (table.flips.length) outcomes.push(["flips", "where the models differ"]);
    outcome.replaceChildren(...outcomes.map(([value, text]) => make("option", { value }, text)));
    outcome.hidden = outcomes.length < 2;
    const groups = table.cluster ? (named(table.cluster)?.levels ?? []) : [];
    const sorted = groups.map((level, i) => [textOf(level), i]).sort();
    group.replaceChildren(
      make("option", { value: "" }, `every ${table.cluster}`),
      ...sorted.map(([text, i]) => make("option", { value: i }, text)),
    );
    group.hidden = groups.length < 2;
    filter();
  }

  function filter() {
    const table = tables[look.table];
    const wanted = search.value.trim().toLowerCase();
    const correct = named("correct");
    const grouped = group.hidden || group.value === "" ? null : named(table.cluster);
    const level = grouped?.levels?.[Number(group.value)];
    const flips = new Set(table.flips);
    const texts = columns.filter((column) => column.length && typeof textSample(column) === "string");
    order = [];
    for (let row = 0; row < (columns[0]?.length ?? 0); row++) {
      if (grouped && grouped.at(row) !== level) continue;
      if (outcome.value === "right" && !(Number(correct?.at(row)) === 1)) continue;
      if (outcome.value === "wrong" && Number(correct?.at(row)) === 1) continue;
      if (outcome.value === "flips" && !flips.has(row)) continue;
      if (wanted && !texts.some((column) => textOf(column.at(row)).toLowerCase().includes(wanted))) continue;
      order.push(row);
    }
    sort();
  }

  /** A value of a column by which texts are told from numbers. @param {any} column */
  function textSample(column) {
    for (let row = 0; row < Math.min(column.length, 50); row++) {
      const value = column.at(row);
      if (typeof value === "string" || Array.isArray(value)) return "text";
    }
    return null;
  }

  function sort() {
    const column = look.sort == null ? null : columns[look.sort];
    if (column) {
      const sign = look.down ? -1 : 1;
      const keyed = order.map((row) => /** @type {[any, number]} */ ([key(column.at(row)), row]));
      keyed.sort(([a, i], [b, j]) => (a === b ? i - j : a == null ? 1 : b == null ? -1 : a < b ? -sign : sign));
      order = keyed.map(([, row]) => row);
    } else order.sort((a, b) => a - b);
    look.page = 0;
    draw();
  }

  /** @param {any} value */
  const key = (value) =>
    value == null ? null : typeof value === "number" ? value : typeof value === "boolean" ? Number(value) : textOf(value);

  /** @param {number} by */
  function turn(by) {
    look.page += by;
    draw();
  }

  function draw() {
    const pages = Math.max(1, Math.ceil(order.length / PAGE));
    look.page = Math.min(Math.max(look.page, 0), pages - 1);
    const rows = order.slice(look.page * PAGE, (look.page + 1) * PAGE);
    const total = columns[0]?.length ?? 0;
    const of = order.length === total ? "" : `${order.length.toLocaleString("en")} of `;
    count.textContent = `${of}${total.toLocaleString("en")} ${visible(tables[look.table].unit)}`;
    place.textContent = `page ${look.page + 1} of ${pages.toLocaleString("en")}`;
    back.disabled = look.page === 0;
    on.disabled = look.page === pages - 1;
    const head = make("tr", {}, make("th", { scope: "col", class: "number" }, "#"), ...columns.map(heading));
    const body_ = make("tbody", {}, ...rows.flatMap((row) => [line(row), look.open.has(row) ? detail(row) : null]).filter(Boolean));
    body.replaceChildren(make("table", { class: "nbllm-examples" }, make("thead", {}, head), body_));
  }

  /** @param {any} column @param {number} index */
  function heading(column, index) {
    const sorted = look.sort === index;
    const pressed = () => {
      if (!sorted) Object.assign(look, { sort: index, down: false });
      else if (!look.down) look.down = true;
      else look.sort = null;
      sort();
      /** @type {any} */ (body.querySelectorAll("thead button")[index])?.focus();
    };
    const arrow = sorted ? (look.down ? " \u25be" : " \u25b4") : "";
    const state = sorted ? (look.down ? "descending" : "ascending") : "none";
    const kind = textSample(column) ? "text" : "number";
    return make("th", { scope: "col", class: kind, "aria-sort": state }, make("button", { type: "button", onclick: pressed }, column.name.replaceAll("_", " ") + arrow));
  }

  /** What a prediction or an answer that is the index of a choice stands for. @param {string} name @param {number} row */
  function meant(name, row) {
    const value = named(name)?.at(row);
    const choices = named("choices")?.at(row);
    if (Number.isInteger(value) && Array.isArray(choices) && choices[value] != null) return `${value}: ${choices[value]}`;
    return value;
  }

  /** Whether a row is right: "good", "bad", or "" where that is not known. @param {number} row */
  function verdict(row) {
    const value = named("correct")?.at(row);
    return value == null ? "" : Number(value) === 1 ? "good" : "bad";
  }

  /** @param {number} row */
  function line(row) {
    const toggle = () => {
      if (!look.open.delete(row)) look.open.add(row);
      draw();
      /** @type {any} */ (body.querySelector(`button[data-row="${row}"]`))?.focus();
    };
    const open = look.open.has(row);
    const number = make("button", { type: "button", "data-row": row, "aria-expanded": open, title: "Show the whole example", onclick: toggle }, `${open ? "\u25be" : "\u25b8"} ${row + 1}`);
    const cells = columns.map((column) => {
      const value = column.at(row);
      if (column.name === "predicted") {
        const kind = verdict(row);
        const mark = kind ? (kind === "good" ? "\u2713 " : "\u2717 ") : "";
        return make("td", { class: kind }, mark + shortened(textOf(meant("predicted", row))));
      }
      if (column.name === "expected") return make("td", {}, shortened(textOf(meant("expected", row))));
      return make("td", { class: typeof value === "number" ? "number" : "text" }, shortened(textOf(value)));
    });
    return make("tr", {}, make("td", { class: "number" }, number), ...cells);
  }

  /** @param {number} row */
  function detail(row) {
    const expected = meant("expected", row);
    const entries = columns.flatMap((column) => {
      const value = column.at(row);
      let shown = make("span", {}, textOf(value));
      if (Array.isArray(value) && value.some((item) => typeof item === "string")) {
        shown = make("ol", { start: 0 }, ...value.map((item) => make("li", {}, textOf(item))));
      } else if (column.name === "predicted" && typeof value === "string" && expected != null) {
        shown = compared(value, textOf(expected));
      } else if (column.name === "predicted" || column.name === "expected") {
        shown = make("span", column.name === "predicted" ? { class: verdict(row) } : {}, textOf(meant(column.name, row)));
      }
      return [make("dt", {}, column.name.replaceAll("_", " ")), make("dd", {}, shown)];
    });
    return make("tr", { class: "nbllm-detail" }, make("td", { colspan: columns.length + 1 }, make("dl", {}, ...entries)));
  }

  choose(0);
}

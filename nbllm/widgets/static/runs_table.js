// @ts-check
/** The table of runs: one row each, updated in place, so that focus and selection survive updates. */
import { element, formatCount, formatDuration, formatNumber } from "./common.js";
import { RunManagement } from "./runs_manage.js";
import { orderRuns, runMatches } from "./runs_order.js";

/**
 * @typedef {import("./runs_order.js").RunRow} RunRow
 * @typedef {{body: any, detail: any, pick: any, lines: any, name: any, fork: any, badge: any, reason: any, step: any,
 *   bar: any, loss: any, heldOut: any, curve: any, created: any, time: any, open: any, command: any,
 *   management: RunManagement, shown: RunRow | null, tree: string}} RunCells
 */

const RUN_COLUMNS = /** @type {{column: string, label: string, title: string, number?: boolean, down?: boolean}[]} */ ([
  { column: "name", label: "Run", title: "by name" },
  { column: "state", label: "State", title: "by state" },
  { column: "step", label: "Step", title: "by steps done", number: true, down: true },
  { column: "loss", label: "Loss", title: "by the newest training loss", number: true },
  { column: "held_out", label: "Held-out", title: "by the newest held-out bits/byte", number: true },
  { column: "curve", label: "Curve", title: "by how far the training loss came down" },
  { column: "created", label: "Started", title: "by when it was started", down: true },
  { column: "time", label: "Last event", title: "by the time of its last event", down: true },
]);
const SVG_SPACE = "http://www.w3.org/2000/svg";

export class RunsTable {
  /**
   * @param {{onPick: (names: string[]) => void, most: number, manage: import("./runs_manage.js").Manage}} options
   *   onPick: called with the names picked, in the order of picking; most: how many can be; manage: renames, deletes
   */
  constructor({ onPick, most, manage }) {
    this.onPick = onPick;
    this.manage = manage;
    this.most = most;
    /** @type {Map<string, RunRow>} */
    this.rows = new Map();
    /** @type {Map<string, RunCells>} */
    this.cells = new Map();
    /** @type {string[]} */
    this.picked = [];
    this.filter = "";
    /** @type {import("./runs_order.js").RunSort | null} null: the family tree */
    this.sort = null;
    this.clock = 0; // the kernel's clock minus the browser's, in seconds
    this.headers = RUN_COLUMNS.map((column) => this.#header(column));
    this.body = element("tbody");
    this.table = element(
      "table",
      { class: "runs-table" },
      element("caption", { class: "runs-unseen", text: "Runs; the buttons in the header sort" }),
      element("thead", null, element("tr", null,
        element("th", { scope: "col", class: "runs-pick" }, element("span", { class: "runs-unseen", text: "Compare" })),
        this.headers.map(({ node }) => node),
        element("th", { scope: "col", class: "runs-open" }, element("span", { class: "runs-unseen", text: "Open" })))),
      this.body,
    );
    this.node = element(
      "div",
      { class: "runs-box", role: "region", tabindex: "0", "aria-label": "Table of runs" },
      this.table,
    );
  }

  /** Show the current `rows`, `filter`, `sort` and `picked`. @returns {number} how many rows are shown */
  show() {
    for (const [name, { body, detail }] of this.cells) {
      if (this.rows.has(name)) continue;
      body.remove();
      detail.remove();
      this.cells.delete(name);
    }
    const matching = [...this.rows.values()].filter((row) => runMatches(row, this.filter));
    const placed = orderRuns(matching, this.sort);
    const nodes = placed.flatMap((place) => {
      const cells = this.#cellsOf(place.row.name);
      this.#fill(cells, place);
      return cells.detail.hidden ? [cells.body] : [cells.body, cells.detail];
    });
    this.#arrange(nodes);
    for (const { node, column, arrow } of this.headers) {
      const sorted = this.sort?.column === column;
      node.setAttribute("aria-sort", !sorted ? "none" : this.sort?.descending ? "descending" : "ascending");
      arrow.textContent = !sorted ? "" : this.sort?.descending ? "▼" : "▲";
    }
    this.tick();
    return placed.length;
  }

  /** Update how long ago the last events were. */
  tick() {
    const now = Date.now() / 1000 + this.clock;
    for (const [name, { time }] of this.cells) {
      const moment = this.rows.get(name)?.time ?? null;
      setRunText(time, moment === null ? "–" : runAge(now - moment));
    }
  }

  /** Put the rows in order; those already in place are not touched. @param {any[]} nodes */
  #arrange(nodes) {
    const focused = /** @type {any} */ (this.node.getRootNode()).activeElement;
    const wanted = new Set(nodes);
    for (const node of [...this.body.children]) if (!wanted.has(node)) node.remove();
    nodes.forEach((node, i) => {
      if (this.body.children[i] !== node) this.body.insertBefore(node, this.body.children[i] ?? null);
    });
    if (focused && this.body.contains(focused)) focused.focus({ preventScroll: true });
  }

  /** @param {{column: string, label: string, title: string, number?: boolean, down?: boolean}} about */
  #header({ column, label, title, number, down = false }) {
    const arrow = element("span", { class: "runs-arrow", "aria-hidden": "true" });
    const sort = () => {
      const before = this.sort?.column === column ? this.sort : null;
      if (!before) this.sort = { column, descending: down };
      else this.sort = before.descending === down ? { column, descending: !down } : null;
      this.show();
      this.onSort?.();
    };
    const button = element("button", { type: "button", title: `Sort ${title}`, onclick: sort }, label, arrow);
    const node = element("th", { scope: "col", class: number ? "number" : column === "created" ? "runs-created" : null }, button);
    return { node, column, arrow };
  }

  /** Called when a header was used. @type {(() => void) | null} */
  onSort = null;

  /** @param {string} name @returns {RunCells} */
  #cellsOf(name) {
    const known = this.cells.get(name);
    if (known) return known;
    const cells = this.#makeCells(name);
    this.cells.set(name, cells);
    return cells;
  }

  /** @param {string} name @returns {RunCells} */
  #makeCells(name) {
    const pick = element("input", { type: "checkbox", "aria-label": `Compare ${name}` });
    pick.addEventListener("change", () => this.#pick(name, pick.checked));
    const lines = element("span", { class: "runs-lines", "aria-hidden": "true" });
    const label = element("bdi", { class: "runs-name", text: name.replaceAll("\n", " ") });
    const fork = element("div", { class: "muted runs-small" });
    const badge = element("span", { class: "runs-state" });
    const reason = element("div", { class: "muted runs-small runs-reason" });
    const step = element("span");
    const bar = element("div");
    const [loss, heldOut] = [0, 1].map(() => element("td", { class: "number" }));
    const curve = element("td", { class: "runs-curve" });
    const created = element("td", { class: "runs-when runs-created" });
    const time = element("td", { class: "runs-when" });
    const id = `nbllm-run-${Math.random().toString(36).slice(2)}`;
    const open = element("button", {
      type: "button", class: "runs-button", "aria-expanded": false, "aria-controls": id, "aria-label": `Open ${name}`,
      text: "Open", onclick: () => this.#toggle(name),
    });
    const command = element("code");
    const management = new RunManagement(name, this.manage);
    const body = element("tr", null,
      element("td", { class: "runs-pick" }, pick),
      element("th", { scope: "row", class: "runs-named" },
        element("div", { class: "runs-tree" }, lines, element("div", null, label, fork))),
      element("td", null, badge, reason),
      element("td", { class: "number" }, step, element("div", { class: "runs-bar", "aria-hidden": "true" }, bar)),
      loss, heldOut, curve, created, time,
      element("td", { class: "runs-open" }, open));
    const detail = element("tr", { class: "runs-detail", id, hidden: true },
      element("td"),
      element("td", { colspan: RUN_COLUMNS.length + 1 },
        element("div", { class: "runs-command" }, element("span", { text: "Show its panel in a cell:" }), command,
          copyButton(() => command)),
        management.node));
    return { body, detail, pick, lines, name: label, fork, badge, reason, step, bar, loss, heldOut, curve, created,
      time, open, command, management, shown: null, tree: "" };
  }

  /** @param {RunCells} cells @param {import("./runs_order.js").PlacedRun} place */
  #fill(cells, { row, lines, under }) {
    const isPicked = this.picked.includes(row.name);
    cells.pick.checked = isPicked;
    cells.pick.disabled = !isPicked && this.picked.length >= this.most;
    cells.pick.title = cells.pick.disabled ? `At most ${this.most} runs are compared.` : "Compare";
    cells.body.classList.toggle("runs-picked", isPicked);
    const tree = `${lines} ${under}`;
    if (tree !== cells.tree) {
      cells.lines.replaceChildren(...lines.map((line) => element("span", { class: `runs-${line}` })));
      cells.tree = tree;
    } else if (cells.shown === row) return;
    cells.shown = row;
    const at = row.parent?.step == null ? "" : `at\u00a0step\u00a0${formatCount(row.parent.step)}`;
    const whole = row.parent ? `forked from ${row.parent.run} ${at}` : row.replay_of ? `replay of ${row.replay_of}` : "";
    setRunText(cells.fork, under ? (row.parent ? `forked\u00a0${at}` : "replay") : whole);
    cells.fork.title = whole;
    cells.management.update(row);
    setRunText(cells.badge, row.state);
    cells.badge.className = `runs-state runs-is-${row.state.replace(/[^a-z]/g, "")}`;
    setRunText(cells.reason, row.reason);
    cells.reason.title = row.reason;
    setRunText(cells.step, formatCount(row.step) + (row.steps ? ` / ${formatCount(row.steps)}` : ""));
    const share = row.steps ? Math.min(1, row.step / row.steps) : 0;
    cells.bar.parentNode.hidden = !row.steps;
    cells.bar.style.width = `${(100 * share).toFixed(1)}%`;
    setRunText(cells.loss, row.loss === null ? "–" : row.loss.toFixed(3));
    setRunText(cells.heldOut, row.held_out === null ? "–" : row.held_out.toFixed(3));
    setRunText(cells.created, runMoment(row.created, false));
    cells.created.title = runMoment(row.created, true);
    setRunText(cells.command, row.open);
    const curve = JSON.stringify(row.sparkline ?? []);
    if (cells.curve.dataset.values !== curve) {
      cells.curve.dataset.values = curve;
      cells.curve.replaceChildren(...runSparkline(row.sparkline ?? []));
    }
  }

  /** @param {string} name @param {boolean} checked */
  #pick(name, checked) {
    this.picked = this.picked.filter((other) => other !== name);
    if (checked) this.picked.push(name);
    this.show();
    this.onPick([...this.picked]);
  }

  /** @param {string} name */
  #toggle(name) {
    const cells = /** @type {RunCells} */ (this.cells.get(name));
    cells.detail.hidden = !cells.detail.hidden;
    cells.open.setAttribute("aria-expanded", String(!cells.detail.hidden));
    cells.open.textContent = cells.detail.hidden ? "Open" : "Close";
    cells.open.setAttribute("aria-label", `${cells.open.textContent} ${name}`);
    this.show();
  }
}

/**
 * A button that copies the text of an element, or selects it where the browser does not let us copy.
 * @param {() => HTMLElement} source @returns {any}
 */
function copyButton(source) {
  const copy = async () => {
    const node = source();
    try {
      await navigator.clipboard.writeText(node.textContent ?? "");
      button.textContent = "Copied";
    } catch {
      getSelection()?.selectAllChildren(node);
      button.textContent = document.execCommand("copy") ? "Copied" : "Selected: press Ctrl+C";
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  };
  const button = element("button", { type: "button", class: "runs-button", "aria-live": "polite", text: "Copy" });
  button.addEventListener("click", copy);
  return button;
}

/**
 * A sparkline, with a description.
 * @param {(number | null)[]} values at equal distances @returns {Element[]}
 */
function runSparkline(values) {
  const there = /** @type {number[]} */ (values.filter((value) => value !== null));
  if (there.length < 2) return [];
  const [low, high] = [Math.min(...there), Math.max(...there)];
  const svg = svgElement("svg", { viewBox: "0 0 100 24", preserveAspectRatio: "none", class: "runs-spark" });
  /** @type {string[]} */
  let points = [];
  const flush = () => {
    if (points.length) svg.append(svgElement("polyline", { points: points.join(" "), fill: "none" }));
    points = [];
  };
  values.forEach((value, i) => {
    if (value === null) return flush();
    const x = (100 * i) / (values.length - 1);
    const y = high > low ? 2 + (20 * (high - value)) / (high - low) : 12;
    points.push(`${x.toFixed(1)},${y.toFixed(1)}`);
  });
  flush();
  const said = `from ${formatNumber(there[0])} to ${formatNumber(there[there.length - 1])}`;
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", said);
  const title = svgElement("title", {});
  title.textContent = said;
  svg.prepend(title);
  return [svg];
}

/** @param {string} tag @param {Record<string, string>} attributes @returns {Element} */
function svgElement(tag, attributes) {
  const node = document.createElementNS(SVG_SPACE, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

/** Change a text only if it differs, so that selections survive. @param {any} node @param {string} text */
function setRunText(node, text) {
  if (node.dataset.text === text) return;
  node.dataset.text = text;
  node.replaceChildren(element("span", { text }));
}

/** @param {number} seconds @returns {string} */
function runAge(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 10) return "now";
  const coarse = seconds < 60 ? Math.floor(seconds / 10) * 10 : seconds;
  return `${formatDuration(coarse < 3600 && coarse >= 60 ? Math.floor(coarse / 60) * 60 : coarse)} ago`;
}

/**
 * Date and minute here; without `whole`, of this year, the year is left out.
 * @param {number | null} seconds since 1970 @param {boolean} whole @returns {string}
 */
function runMoment(seconds, whole) {
  const date = new Date((seconds ?? NaN) * 1000);
  if (Number.isNaN(date.getTime())) return "–";
  const two = (/** @type {number} */ part) => String(part).padStart(2, "0");
  const day = `${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  const minute = `${two(date.getHours())}:${two(date.getMinutes())}`;
  if (!whole && date.getFullYear() === new Date().getFullYear()) return `${day} ${minute}`;
  return whole ? `${date.getFullYear()}-${day} ${minute}` : `${date.getFullYear()}-${day}`;
}

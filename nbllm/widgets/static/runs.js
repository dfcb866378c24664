// @ts-check
/** The runs panel: all runs of a folder in a table, and a comparison of the selected ones. */
import { decodeColumns, element, errorBox, formatCount, suppressShortcuts, visibleText } from "./common.js";
import { Connection, LossNote } from "./connection.js";
import { RunsComparison } from "./runs_comparison.js";
import { RUN_STATES } from "./runs_order.js";
import { RunsTable } from "./runs_table.js";

const MOST_COMPARED_RUNS = 12;
const RUNS_TICK = 10_000; // milliseconds between looks at the clock
const UNANSWERED = "The kernel has not answered yet: it is busy with a cell, or was restarted.";
const LOST = "If the kernel has ended, run the cell again: nb.runs() shows the runs anew.";

class RunsView {
  /** @param {any} model @param {HTMLElement} el */
  constructor(model, el) {
    /** @type {number | null} of the newest message; null: nothing has come yet */
    this.seq = null;
    this.folder = "";
    /** @type {Map<string, (number | null)[]>} */
    this.sparklines = new Map();
    this.error = errorBox();
    this.comparison = new RunsComparison();
    /** Requests without an answer, by number. @type {Map<number, {run: string, answered: (problem: string) => void}>} */
    this.waiting = new Map();
    this.renamed = false; // since the runs were last compared
    this.requests = 0;
    this.table = new RunsTable({
      onPick: () => this.#compare(), most: MOST_COMPARED_RUNS,
      manage: (request, answered) => this.#manage(request, answered),
    });
    this.table.onSort = () => this.#showSummary();
    this.status = element("span", { role: "status", class: "muted", text: "Waiting for the kernel…" });
    this.filter = element("input", {
      type: "search", placeholder: "Filter by name or state", "aria-label": "Filter runs by name or state",
      oninput: () => this.#filter(),
    });
    this.family = element("button", {
      type: "button", class: "runs-button", "aria-pressed": true, title: "Forks beneath the run that they come from",
      text: "Family tree", onclick: () => this.#showFamily(),
    });
    this.clear = element("button", { type: "button", class: "runs-button", hidden: true, onclick: () => this.#clear() });
    this.done = element("div", { role: "status", class: "good" });
    this.empty = element("p", { class: "muted", hidden: true });
    this.unreadable = element("div");
    this.bar = element("div", { class: "runs-controls", hidden: true }, this.filter, this.family, this.clear);
    this.hint = element("p", { class: "muted runs-small", hidden: true, text: "Pick two or more runs to compare them." });
    el.classList.add("nbllm", "nbllm-panel");
    this.body = element("div", null,
      this.bar, this.status, this.done, this.empty, this.table.node, this.unreadable, this.hint, this.comparison.node);
    this.root = element("div", { class: "runs-panel", onfocusin: suppressShortcuts }, this.body, this.error.node);
    this.loss = new LossNote(el);
    this.body.before(this.loss.node);
    this.table.node.hidden = true;
    el.append(this.root);
    this.clock = setInterval(() => this.table.tick(), RUNS_TICK);
    this.connection = new Connection({
      onMessage: (content, buffers) => this.#take(content, buffers),
      onChange: () => this.#showConnection(),
      onProblem: (problem) => this.error.show(problem),
    });
    this.connection.open(model);
  }

  destroy() {
    clearInterval(this.clock);
    this.connection.close();
    this.comparison.destroy();
    this.root.remove();
  }

  #showConnection() {
    const { connection } = this;
    this.loss.show(connection, [this.body], () => LOST);
    if (this.seq === null && connection.isUnanswered) this.status.textContent = UNANSWERED;
  }

  /** @param {any} content @param {DataView[]} buffers */
  #take(content, buffers) {
    if (content.type === "runs") this.#takeRuns(content);
    else if (content.type === "sparklines") {
      for (const [name, values] of content.runs) this.#takeSparkline(name, values);
      this.#show();
    } else if (content.type === "comparison") this.comparison.show(content);
    else if (content.type === "points") {
      this.comparison.setPoints(content.run, content.series, decodeColumns(content.columns, buffers));
    } else if (content.type === "problem") this.error.show(content.text);
    else if (content.type === "done") this.#done(content);
    else if (content.type === "refused" && !this.#answer(content.request, content.reason)) this.error.show(content.reason);
  }

  /** @param {import("./runs_manage.js").ManageRequest} request @param {(problem: string) => void} answered */
  #manage(request, answered) {
    this.waiting.set(++this.requests, { run: request.run, answered });
    this.connection.send({ ...request, request: this.requests });
  }

  /** @param {number} request @param {string} problem @returns {boolean} whether an answer was expected */
  #answer(request, problem) {
    const waiting = this.waiting.get(request);
    this.waiting.delete(request);
    waiting?.answered(problem);
    return waiting !== undefined;
  }

  /** @param {{request: number, text: string, name: string}} content name: the new one; "": the run was deleted */
  #done({ request, text, name }) {
    const run = this.waiting.get(request)?.run ?? "";
    if (name && this.table.picked.includes(run)) {
      this.table.picked = this.table.picked.map((one) => (one === run ? name : one));
      this.renamed = true;
    }
    this.#answer(request, "");
    this.done.textContent = visibleText(text);
    this.filter.focus(); // the focused button is removed with its row
  }

  /** @param {any} content */
  #takeRuns({ seq, folder, whole, now, rows, gone, unreadable }) {
    if (!whole) {
      if (this.seq === null) return; // all of it is on its way
      if (seq <= this.seq) return;
      if (seq > this.seq + 1) {
        this.seq = null;
        return this.connection.hello();
      }
    }
    const again = whole && this.seq === null && this.table.picked.length > 1;
    if (whole) this.connection.answered();
    this.seq = seq;
    this.folder = folder;
    this.table.clock = now - Date.now() / 1000;
    if (whole) this.table.rows.clear();
    for (const name of gone) {
      this.table.rows.delete(name);
      this.sparklines.delete(name);
    }
    for (const row of rows) this.table.rows.set(row.name, { ...row, sparkline: this.sparklines.get(row.name) });
    const reasons = unreadable.map(([name, reason]) =>
      element("div", { class: "runs-note" }, element("bdi", { text: name }), `: unreadable (${reason})`));
    this.unreadable.replaceChildren(...reasons);
    this.unread = unreadable.length;
    const picked = this.table.picked.filter((name) => this.table.rows.has(name));
    const lost = picked.length < this.table.picked.length;
    this.table.picked = picked;
    this.#show();
    if (again || lost || this.renamed) this.#compare();
  }

  /** @param {string} name @param {(number | null)[]} values */
  #takeSparkline(name, values) {
    this.sparklines.set(name, values);
    const row = this.table.rows.get(name);
    if (row) this.table.rows.set(name, { ...row, sparkline: values });
  }

  #show() {
    if (this.seq === null) return;
    const none = this.table.rows.size === 0;
    this.bar.hidden = this.table.node.hidden = none;
    this.empty.hidden = !none || this.unread > 0;
    if (!this.empty.hidden && this.empty.dataset.folder !== this.folder) {
      this.empty.dataset.folder = this.folder;
      this.empty.replaceChildren("No runs in ", element("bdi", { text: `${this.folder.replace(/\/$/, "")}/` }), " yet: ",
        element("code", { text: "nb.train(lm, data)" }), " makes one.");
    }
    this.shown = this.table.show();
    this.#showSummary();
  }

  #showSummary() {
    const { rows, picked, sort } = this.table;
    this.family.setAttribute("aria-pressed", String(sort === null));
    this.clear.hidden = picked.length === 0;
    this.clear.textContent = `Clear ${picked.length} picked`;
    this.hint.hidden = rows.size < 2 || picked.length > 1;
    const states = RUN_STATES.map((state) => [state, [...rows.values()].filter((row) => row.state === state).length]);
    const counts = states.filter(([, number]) => number).map(([state, number]) => `${formatCount(Number(number))} ${state}`);
    const total = `${formatCount(rows.size)} run${rows.size === 1 ? "" : "s"}: ${counts.join(", ")}`;
    const text = rows.size === 0 ? "" : this.shown === rows.size ? total : `${total}; ${this.shown} shown`;
    if (this.status.textContent !== text) this.status.textContent = text;
  }

  #filter() {
    this.table.filter = this.filter.value.trim();
    this.#show();
  }

  #showFamily() {
    this.table.sort = null;
    this.#show();
  }

  #clear() {
    this.table.picked = [];
    this.#show();
    this.#compare();
    this.filter.focus(); // the focused button is gone
  }

  #compare() {
    const { picked } = this.table;
    this.renamed = false;
    this.#showSummary();
    if (picked.length < 2) this.comparison.show({ runs: [] });
    this.connection.send({ type: "compare", runs: picked.length > 1 ? picked : [] });
  }
}

/** @param {{model: any, el: HTMLElement}} context @returns {() => void} */
function render({ model, el }) {
  const view = new RunsView(model, el);
  return () => view.destroy();
}

export default { render };

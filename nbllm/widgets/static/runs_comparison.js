// @ts-check
/** Several runs side by side: curves in one chart, results, settings, newest samples. */
import { Chart } from "./chart.js";
import { element, formatCount, formatDuration } from "./common.js";
import { interpolate, smooth } from "./decimate.js";
import { swatch } from "./reading.js";
import { dashOf } from "./series.js";

/**
 * @typedef {{runs: string[], results?: {label: string, values: string[], best: number | null}[],
 *   settings?: {name: string, values: string[], differs: boolean}[], num_settings?: number,
 *   samples?: ({step: number, prompt: string, text: string} | null)[]}} ComparedRuns
 * @typedef {Record<string, Float32Array | Float64Array>} RunColumns
 */

const COMPARED_AXES = {
  step: { label: "step", format: formatCount },
  tokens: { label: "tokens", format: formatCount },
  seconds: { label: "trained for", format: formatDuration },
};
const NUM_RUN_COLORS = 6;
const MOST_WITH_RAW = 3; // with more runs, the raw lines behind the smoothed ones would be unreadable

export class RunsComparison {
  constructor() {
    /** @type {ComparedRuns} */
    this.compared = { runs: [] };
    /** @type {Map<string, {steps?: RunColumns, evaluations?: RunColumns}>} */
    this.points = new Map();
    /** @type {"step" | "tokens" | "seconds"} */
    this.axis = "step";
    this.smoothing = 2; // percent of a run's points
    this.onlyDifferences = true;
    this.title = element("h3", { id: `nbllm-compare-${Math.random().toString(36).slice(2)}` });
    this.without = element("p", { class: "muted", hidden: true });
    const hosts = [0, 1].map(() => element("div", { class: "runs-chart" }));
    this.results = element("div");
    this.settings = element("div");
    this.samples = element("div");
    this.node = element("section", { class: "runs-comparison", "aria-labelledby": this.title.id, hidden: true },
      this.title, this.#controls(), element("div", { class: "runs-charts" }, hosts), this.without, this.results,
      this.#settingsHead(), this.settings, this.samples);
    this.training = new Chart(hosts[0], { label: "Training loss of the compared runs", yLabel: "training loss", height: 250 });
    this.heldOut = new Chart(hosts[1], { label: "Held-out results of the compared runs", yLabel: "held-out, bits/byte", height: 250 });
    this.training.onView = (view) => this.heldOut.setView(view);
    this.heldOut.onView = (view) => this.training.setView(view);
  }

  /** @param {ComparedRuns} compared */
  show(compared) {
    const before = this.compared;
    this.compared = compared;
    this.node.hidden = compared.runs.length === 0;
    for (const name of this.points.keys()) if (!compared.runs.includes(name)) this.points.delete(name);
    if (this.node.hidden) return;
    this.training.yTitle.textContent = compared.loss_label ?? "training loss";
    this.title.textContent = compared.runs.length === 1 ? "One run" : `${compared.runs.length} runs compared`;
    const sameRuns = String(before.runs) === String(compared.runs);
    /** @param {"results" | "settings" | "samples"} part */
    const changed = (part) => !sameRuns || JSON.stringify(before[part]) !== JSON.stringify(compared[part]);
    if (changed("results")) this.#showResults();
    if (changed("settings")) this.#showSettings();
    if (changed("samples")) this.#showSamples();
    if (!sameRuns) this.#draw();
  }

  /** @param {string} run @param {"steps" | "evaluations"} series @param {RunColumns} columns */
  setPoints(run, series, columns) {
    if (!this.compared.runs.includes(run)) return;
    this.points.set(run, { ...this.points.get(run), [series]: columns });
    this.#draw();
  }

  destroy() {
    this.training.destroy();
    this.heldOut.destroy();
  }

  #controls() {
    const axis = element("select", { onchange: () => this.#setAxis(axis.value) },
      element("option", { value: "step", text: "steps" }),
      element("option", { value: "tokens", text: "tokens" }),
      element("option", { value: "seconds", text: "time" }));
    const log = element("input", { type: "checkbox" });
    log.addEventListener("change", () => [this.training, this.heldOut].forEach((chart) => chart.setLog(log.checked)));
    const smoothing = element("input", { type: "range", min: 0, max: 10, step: 0.5, value: this.smoothing });
    smoothing.addEventListener("input", () => {
      this.smoothing = Number(smoothing.value);
      this.#draw();
    });
    return element("div", { class: "runs-controls" },
      element("label", null, "over ", axis), element("label", null, log, " log scale"),
      element("label", null, "smoothing ", smoothing));
  }

  #settingsHead() {
    const only = element("input", { type: "checkbox", checked: true });
    only.addEventListener("change", () => {
      this.onlyDifferences = only.checked;
      this.#showSettings();
    });
    return element("div", { class: "runs-head" }, element("h4", { text: "Settings" }),
      element("label", null, only, " only differences"));
  }

  /** @param {"step" | "tokens" | "seconds"} axis */
  #setAxis(axis) {
    this.axis = axis;
    for (const chart of [this.training, this.heldOut]) chart.setView(null);
    this.#draw();
  }

  #draw() {
    const [training, heldOut] = [/** @type {any[]} */ ([]), /** @type {any[]} */ ([])];
    const all = this.compared.runs.map((run) => this.points.get(run));
    // One measure for all: bits a byte where any run has them, since tokens differ between tokenizers.
    const metric = all.some((points) => points?.evaluations?.bits_per_byte) ? "bits_per_byte" : "loss";
    const without = this.compared.runs.filter((run, i) => {
      const { steps, evaluations } = all[i] ?? {};
      const look = { label: run, color: runColor(i), ...(i < NUM_RUN_COLORS ? {} : { dash: [1, 3] }) };
      if (!steps) return false;
      const x = steps[this.axis];
      if (steps.loss && x) training.push(...this.#lines(run, look, x, steps.loss));
      if (!evaluations?.[metric] || !x) return !x && steps.step.length > 0;
      const at = this.axis === "step" ? evaluations.step : evaluations.step.map((step) => interpolate(steps.step, x, steps.step.length, step));
      const [line] = [{ key: run, x: Float64Array.from(at), y: evaluations[metric], length: at.length, kind: "points" }];
      heldOut.push({ ...line, ...look });
      return false;
    });
    const { label, format } = COMPARED_AXES[this.axis];
    const faint = training.filter((line) => line.faint);
    this.training.label = `Training loss of the compared runs${this.smoothing > 0 ? ", smoothed" : ""}`;
    this.training.setXAxis({ label, format });
    this.training.setSeries([...faint, ...training.filter((line) => !line.faint)]);
    this.heldOut.setXAxis({ label, format });
    this.heldOut.setSeries(heldOut);
    this.without.hidden = without.length === 0;
    this.without.replaceChildren(element("span", { text: `Not on this axis: ${without.join(", ")}.` }));
  }

  /** @param {string} run @param {{label: string, color: string}} look @param {RunColumns[string]} x @param {RunColumns[string]} loss */
  #lines(run, look, x, loss) {
    const line = { ...look, x: Float64Array.from(x), length: x.length, kind: "line" };
    if (this.smoothing === 0) return [{ ...line, key: run, y: loss }];
    const smoothed = { ...line, key: run, y: smooth(loss, loss.length, (loss.length * this.smoothing) / 100) };
    const raw = this.compared.runs.length <= MOST_WITH_RAW;
    return raw ? [{ ...line, key: `${run} raw`, label: `${run}, raw`, y: loss, faint: true }, smoothed] : [smoothed];
  }

  #showResults() {
    const rows = (this.compared.results ?? []).map(({ label, values, best }) =>
      element("tr", null, element("th", { scope: "row", text: label }),
        values.map((value, i) => element("td", null, label === "state"
          ? element("span", { class: `runs-state runs-is-${value.replace(/[^a-z]/g, "")}`, text: value })
          : i === best ? element("b", { title: "the lowest", text: value }) : value))));
    this.results.replaceChildren(this.#beside("Results", rows));
  }

  #showSettings() {
    const all = this.compared.settings ?? [];
    const shown = this.onlyDifferences ? all.filter(({ differs }) => differs) : all;
    if (!shown.length) {
      const text = this.onlyDifferences ? "All settings are the same." : "No settings are on record.";
      this.settings.replaceChildren(element("p", { class: "muted", text }));
      return;
    }
    const rows = shown.map(({ name, values, differs }) =>
      element("tr", { class: differs ? "runs-differs" : null },
        element("th", { scope: "row" }, name, differs ? [" ", element("span", { class: "runs-mark", text: "differs" })] : null),
        values.map((value) => element("td", { text: value }))));
    const hidden = (this.compared.num_settings ?? 0) - all.length;
    const rest = hidden > 0 ? element("p", { class: "muted", text: `${formatCount(hidden)} more are not shown.` }) : [];
    this.settings.replaceChildren(this.#beside("Settings", rows), ...[rest].flat());
  }

  #showSamples() {
    const samples = this.compared.samples ?? [];
    if (!samples.some(Boolean)) return this.samples.replaceChildren();
    const columns = this.compared.runs.map((run, i) => {
      const sample = samples[i];
      return element("div", { class: "runs-sample" },
        this.#named(run, i),
        sample
          ? [element("div", { class: "muted runs-small", text: `step ${formatCount(sample.step)}` }),
            element("pre", null, element("b", { text: sample.prompt }), sample.text)]
          : element("p", { class: "muted", text: "No sample yet." }));
    });
    this.samples.replaceChildren(element("h4", { text: "Newest samples" }),
      element("div", { class: "runs-samples", role: "region", tabindex: "0", "aria-label": "Newest samples" }, columns));
  }

  /** @param {string} label @param {any[]} rows @returns {HTMLElement} */
  #beside(label, rows) {
    const names = this.compared.runs.map((run, i) => element("th", { scope: "col" }, this.#named(run, i)));
    return element("div", { class: "nbllm-scroll", role: "region", tabindex: "0", "aria-label": label },
      element("table", { class: "runs-beside" },
        element("thead", null, element("tr", null, element("td"), names)), element("tbody", null, rows)));
  }

  /** @param {string} run @param {number} i */
  #named(run, i) {
    return element("span", { class: "runs-named-by-color" }, swatch(`var(${runColor(i)})`, i < NUM_RUN_COLORS ? dashOf(runColor(i)) : [1, 3]),
      element("bdi", { text: run.replaceAll("\n", " ") }));
  }
}

/** @param {number} i @returns {string} */
function runColor(i) {
  return `--nbllm-series-${1 + (i % NUM_RUN_COLORS)}`;
}

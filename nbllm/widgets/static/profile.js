// @ts-check
/** What the ranks did in some steps that were profiled: the button that asks for it, the newest picture, its shares. */
import { element, formatCount, visibleText } from "./common.js";
import { blockedReason } from "./controls.js";
import { disclosure, pushButton, setShown, setText } from "./dom.js";
import { OutcomeLine } from "./outcome.js";
import { isLive } from "./requests.js";

/**
 * @typedef {[start: number, end: number, covered: number, spans: number]} Bar times in milliseconds
 * @typedef {{rank: number, length: number, step: number, shares: Record<string, number>, bars: Record<string, Bar[]>}} Rank
 * @typedef {{step: number, title: string, length: number, folder: string, traces: number, hidden: number, ranks: Rank[]}} Profile
 *   as nbllm/widgets/profile_card.py makes it
 */

const STEPS = 3;
const KINDS = ["idle", "computing", "communication", "data", "optimizer"]; // as they are drawn, the last on top
const LEGEND = [...KINDS.slice(1), "idle"];
const SHARES = { computing: "computing", communication: "communication", exposed: "of it exposed", data: "data",
  optimizer: "optimizer", idle: "idle" };
const [WIDTH, LANE, GAP] = [1000, 13, 2]; // units of a drawing, which is stretched to the width of the panel
/** Where each kind lies and how high it is: told apart by that too, for whoever sees their colours alike. */
const PLACES = /** @type {Record<string, [number, number]>} */ ({ idle: [0, 2 * LANE + GAP], computing: [0, LANE],
  communication: [LANE + GAP, LANE], data: [0, LANE / 2], optimizer: [LANE / 2, LANE / 2] });
const SVG = "http://www.w3.org/2000/svg";

export class ProfilePart {
  /** @param {import("./dom.js").PanelContext} panel */
  constructor(panel) {
    this.panel = panel;
    this.line = new OutcomeLine(panel, ({ action }) => action === "profile");
    this.button = pushButton(panel, { line: this.line, label: `Profile ${STEPS} steps`,
      press: () => panel.ask("profile", { steps: STEPS }) });
    this.head = element("span");
    this.shown = element("div");
    /** @type {Profile | null} what `shown` holds */
    this.drawn = null;
    this.node = disclosure(panel, "profile", this.head,
      element("div", { class: "panel-row" }, this.button.node, this.line.node), this.shown);
    this.node.classList.add("panel-profile");
  }

  /** @param {any} card */
  update(card) {
    const profile = /** @type {Profile | null} */ (card.profile);
    setText(this.head, profile ? `Profile: ${profile.title}` : "Profile");
    if (!this.node.open) return;
    const watching = stepsWatched(card);
    this.button.block(blockedReason(card, "profile") || watching, this.panel.requests.isPending(card.key, "profile"));
    this.line.update(card, watching);
    if (profile === this.drawn) return;
    this.drawn = profile;
    setShown(this.shown, profile !== null);
    if (profile) this.shown.replaceChildren(...draw(profile));
    else this.shown.replaceChildren();
  }
}

/** @param {any} card @returns {string} which steps are being profiled now; "": none */
function stepsWatched(card) {
  const asked = card.actions.findLast((/** @type {any} */ { action, outcome }) => action === "profile" && outcome === "applied");
  if (!asked || !isLive(card) || card.profile?.step === asked.step) return "";
  const last = asked.step + (Number(asked.args.steps) || STEPS);
  return card.step < last ? `Steps ${formatCount(asked.step + 1)} to ${formatCount(last)} are being profiled…` : "";
}

/** @param {Profile} profile @returns {HTMLElement[]} */
function draw({ title, length, folder, traces, hidden, ranks }) {
  const legend = element("div", { class: "profile-legend" },
    LEGEND.map((kind) => element("span", null, element("i", { class: `kind-${kind}` }), kind)));
  const lanes = element("div", { class: "profile-lanes", tabindex: 0, role: "region", "aria-label": `Profile of ${title}` },
    ranks.map((rank) => element("div", { class: "profile-lane" }, element("span", { text: `rank ${rank.rank}` }), lane(rank, length))));
  const axis = element("div", { class: "profile-axis", "aria-hidden": "true" },
    element("span", { text: "0" }), element("span", { text: milliseconds(length) }));
  const more = hidden ? ` The first ${formatCount(ranks.length)} of ${formatCount(ranks.length + hidden)} ranks.` : "";
  const where = element("p", { class: "muted" }, traces === 1 ? "The whole trace" : `The whole traces of ${formatCount(traces)} ranks`,
    ", for Perfetto (ui.perfetto.dev) or chrome://tracing: ", element("code", { text: folder }), more);
  return [legend, lanes, axis, table(ranks), where];
}

/**
 * One rank: what it does, and in a lane below it communication, which goes on beside other things.
 * @param {Rank} rank @param {number} longest milliseconds that the drawing is wide
 */
function lane({ rank, length, bars }, longest) {
  const svg = svgNode("svg", { viewBox: `0 0 ${WIDTH} ${2 * LANE + GAP}`, preserveAspectRatio: "none" });
  const scale = WIDTH / longest;
  svg.append(svgNode("rect", { class: "kind-idle", width: length * scale, height: 2 * LANE + GAP, "fill-opacity": 0.3 }));
  for (const kind of KINDS) {
    for (const bar of bars[kind] ?? []) svg.append(rectangle(kind, bar, scale, rank));
  }
  return svg;
}

/** @param {string} kind @param {Bar} bar @param {number} scale units a millisecond @param {number} rank */
function rectangle(kind, [start, end, covered, spans], scale, rank) {
  const [y, height] = PLACES[kind];
  const pieces = spans > 1 ? ` in ${formatCount(spans)} pieces` : "";
  const title = svgNode("title", {});
  title.textContent = `rank ${rank}: ${kind}, ${milliseconds(covered)}${pieces}, from ${milliseconds(start)} to ${milliseconds(end)}`;
  const node = svgNode("rect", {
    class: `kind-${kind}`, x: start * scale, y, width: Math.max((end - start) * scale, 0.5), height,
    "fill-opacity": kind === "idle" ? 0.8 : Math.max(0.3, end > start ? Math.min(1, covered / (end - start)) : 1),
  });
  node.append(title);
  return node;
}

/** @param {Rank[]} ranks */
function table(ranks) {
  const header = ["rank", "step", ...Object.values(SHARES)].map((text) => element("th", { scope: "col", class: "number", text }));
  const rows = ranks.map(({ rank, step, shares }) => element("tr", null,
    element("th", { scope: "row", class: "number", text: rank }),
    element("td", { class: "number", text: milliseconds(step) }),
    Object.keys(SHARES).map((name) => element("td", { class: "number", text: `${shares[name].toFixed(1)} %` }))));
  return element("div", { class: "nbllm-scroll profile-shares", tabindex: 0, role: "region", "aria-label": "What the ranks spent their time on" },
    element("table", null, element("thead", null, element("tr", null, header)), element("tbody", null, rows)));
}

/** @param {string} name @param {Record<string, string | number>} attributes @returns {SVGElement} */
function svgNode(name, attributes) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) {
    node.setAttribute(key, typeof value === "number" ? String(Math.round(100 * value) / 100) : visibleText(value));
  }
  return node;
}

/** @param {number} value @returns {string} */
function milliseconds(value) {
  return `${value.toFixed(value < 100 ? 2 : 1)} ms`;
}

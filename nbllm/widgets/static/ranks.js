// @ts-check
/** The processes that train a run together: memory, and how long each computes and waits for the others. */
import { element, formatBytes, formatCount, formatDuration } from "./common.js";
import { disclosure, keyed, setAttribute, setShown, setText } from "./dom.js";

/** @typedef {{rank: number, memory: number | null, seconds: number | null, computing: number | null, slow: boolean,
 *   held?: (number | null)[]}} Rank */

export class RanksPart {
  /** @param {import("./dom.js").PanelContext} panel */
  constructor(panel) {
    this.head = element("span");
    this.body = element("tbody");
    const header = ["rank", "memory", "step", "computing, the rest waiting", ""].map((text, i) =>
      element("th", { scope: "col", class: i < 3 ? "number" : null, text }));
    this.node = disclosure(panel, "ranks", this.head,
      element("div", { class: "nbllm-scroll panel-ranks", tabindex: 0, role: "region", "aria-label": "Ranks" },
        element("table", null, element("thead", null, element("tr", null, header)), this.body)));
    this.node.hidden = true;
  }

  /** @param {any} card */
  update(card) {
    const ranks = /** @type {Rank[]} */ (card.ranks ?? []);
    setShown(this.node, ranks.length > 0);
    if (!ranks.length) return;
    const slow = ranks.filter((rank) => rank.slow).map(({ rank }) => rank);
    const few = slow.slice(0, 4).join(", ") + (slow.length > 4 ? ", …" : "");
    const waiting = slow.length ? `: the others wait for rank ${few}` : "";
    setText(this.head, `${formatCount(ranks.length)} ranks, step ${formatCount(card.ranks_step)}${waiting}`);
    const most = Math.max(...ranks.map(({ memory }) => memory ?? 0));
    if (this.node.open) keyed(this.body, ranks, ({ rank }) => String(rank), makeRow, (row, rank) => updateRow(row, rank, most));
  }
}

function makeRow() {
  const bar = () => element("div", { class: "rank-bar" }, element("div"));
  return element("tr", null,
    element("th", { scope: "row", class: "number" }),
    element("td", { class: "number" }, element("span"), bar()),
    element("td", { class: "number" }),
    element("td", null, element("div", { class: "rank-times" }, bar(), element("span"))),
    element("td", { class: "rank-note" }));
}

/** @param {any} row @param {Rank} rank @param {number} most bytes of the rank that holds most */
function updateRow(row, { rank, memory, seconds, computing, slow, held: parts = [] }, most) {
  const [name, held, took, { firstChild: times }, note] = row.children;
  setText(name, rank);
  setText(held.firstChild, formatBytes(memory));
  const [weights, gradients, optimizer] = parts;
  const among = weights == null ? null : `among it weights ${formatBytes(weights)}, gradients ${formatBytes(gradients)}, optimizer ${formatBytes(optimizer)}`;
  setAttribute(held, "title", among);
  fill(held.lastChild, memory == null || !most ? 0 : memory / most);
  setText(took, formatDuration(seconds));
  const share = computing == null || !seconds ? null : Math.min(1, computing / seconds);
  setShown(times.firstChild, share !== null);
  fill(times.firstChild, share ?? 0);
  setText(times.lastChild, share === null ? "not measured" : `${Math.round(100 * share)} %`);
  setText(note, slow ? "slowest" : "");
  setAttribute(row, "class", slow ? "slow-rank" : null);
}

/** @param {any} bar @param {number} share 0 to 1 */
function fill(bar, share) {
  const width = `${(100 * share).toFixed(1)}%`;
  if (bar.firstChild.style.width !== width) bar.firstChild.style.width = width;
}

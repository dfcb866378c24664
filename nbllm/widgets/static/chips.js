// @ts-check
/** The runs of a family: which one is steered, and which ones are drawn. */
import { element } from "./common.js";
import { icon, keyed, setAttribute, setShown, setText } from "./dom.js";

/** @typedef {import("./dom.js").PanelContext} PanelContext */

export class ChipsPart {
  /** @param {PanelContext} panel */
  constructor(panel) {
    this.panel = panel;
    this.node = element("div", { class: "panel-chips", role: "group", "aria-label": "Runs of this family", hidden: true });
  }

  /** @param {any} card @param {Map<string, any>} cards */
  update(card, cards) {
    setShown(this.node, cards.size > 1);
    keyed(
      this.node,
      [...cards.values()],
      ({ key }) => key,
      ({ key }) => this.#make(key),
      (node, one) => this.#show(node, one, one.key === card.key),
    );
  }

  /** @param {string} key */
  #make(key) {
    const { panel } = this;
    const eye = element("button", { type: "button", class: "chip-eye", onclick: panel.guarded(() => {
      const { hidden } = panel.ui;
      if (!hidden.delete(key)) hidden.add(key);
      panel.redraw();
    }) }, icon("eye"));
    const pick = element(
      "button",
      { type: "button", class: "chip-pick", onclick: panel.guarded(() => panel.focusOn(key)) },
      element("span", { class: "chip-line" }), element("bdi", { class: "chip-name" }), element("span", { class: "chip-state" }),
    );
    return element("div", { class: "panel-chip" }, pick, eye);
  }

  /** @param {any} node @param {any} card @param {boolean} focused */
  #show(node, card, focused) {
    const [pick, eye] = node.children;
    const hidden = this.panel.ui.hidden.has(card.key) && !focused;
    const kind = `panel-chip${focused ? " focused" : ""}${hidden ? " hidden-run" : ""}`;
    setAttribute(node, "class", kind);
    node.style.setProperty("--chip", `var(--nbllm-series-${card.color})`);
    setText(pick.children[1], card.name);
    setText(pick.children[2], card.state);
    setAttribute(pick.children[2], "class", `chip-state run-${card.state}`);
    setAttribute(pick, "aria-pressed", String(focused));
    setAttribute(pick, "title", focused ? `${card.name}: the controls are for this run` : `Steer ${card.name}`);
    setAttribute(eye, "aria-pressed", String(!hidden));
    setAttribute(eye, "aria-label", `Draw ${card.name}`);
    setAttribute(eye, "title", hidden ? "Draw its curves" : "Hide its curves");
    setShown(eye, !focused);
  }
}

// @ts-check
/** Renaming and deleting a run of the table, each with a confirmation; a live run is left alone. */
import { element } from "./common.js";
import { setAttribute, setShown, setText } from "./dom.js";
import { isLive } from "./requests.js";

/**
 * @typedef {{type: "rename" | "delete", run: string, name?: string}} ManageRequest
 * @typedef {(request: ManageRequest, answered: (problem: string) => void) => void} Manage
 *   answered: called with why it was refused; "": it is done
 */

const WAITING = "The kernel has not answered yet.";
const PATIENCE = 1500; // milliseconds after which that is said

export class RunManagement {
  /** @param {string} name of the run @param {Manage} manage */
  constructor(name, manage) {
    this.name = name;
    this.manage = manage;
    this.timer = 0;
    const button = (/** @type {string} */ text, /** @type {() => void} */ press, kind = "", label = text) =>
      element("button", { type: "button", class: `runs-button ${kind}`, text, "aria-label": label, onclick: press });
    this.rename = button("Rename…", () => this.#open(this.renaming), "", `Rename ${name}`);
    this.remove = button("Delete…", () => this.#open(this.removing), "", `Delete ${name}`);
    this.field = element("input", {
      type: "text", "aria-label": `New name of ${name}`, maxlength: 80, spellcheck: "false", autocomplete: "off",
      onkeydown: (/** @type {KeyboardEvent} */ event) => event.key === "Enter" && this.#rename(),
    });
    this.renaming = this.#form("Rename the run", this.field, button("Rename", () => this.#rename(), "primary"));
    this.removing = this.#form(
      "Delete the run?",
      element("span", { text: "Its curves, samples and checkpoints are deleted for good." }),
      button("Delete for good", () => this.#ask({ type: "delete", run: this.name }), "danger"),
    );
    this.choice = element("span", { class: "runs-manage" }, this.rename, this.remove);
    this.said = element("span", { class: "runs-small", role: "status" });
    this.node = element("div", { class: "runs-manage" }, this.choice, this.renaming, this.removing, this.said);
  }

  /** @param {import("./runs_order.js").RunRow} row */
  update(row) {
    const reason = isLive(row) ? `The run is ${row.state}: stop it first.` : "";
    for (const button of [this.rename, this.remove]) {
      button.disabled = reason !== "";
      setAttribute(button, "title", reason || null);
    }
    if (reason && this.choice.hidden) this.#open(null);
  }

  /** @param {string} label @param {...any} parts @returns {any} */
  #form(label, ...parts) {
    const cancel = element("button", { type: "button", class: "runs-button", text: "Cancel", onclick: () => this.#open(null) });
    return element("span", {
      class: "runs-manage", role: "group", "aria-label": label, hidden: true,
      onkeydown: (/** @type {KeyboardEvent} */ event) => event.key === "Escape" && this.#open(null),
    }, parts, cancel);
  }

  /** @param {any} form null: none */
  #open(form) {
    const from = this.renaming.hidden ? this.remove : this.rename;
    const focused = this.node.contains(document.activeElement);
    setShown(this.choice, form === null);
    setShown(this.renaming, form === this.renaming);
    setShown(this.removing, form === this.removing);
    this.#say("");
    this.field.value = this.name;
    if (form === this.renaming) this.field.select();
    else if (form) form.querySelector("button:last-child").focus(); // what deletes is not pressed by mistake
    else if (focused) from.focus();
  }

  #rename() {
    const name = this.field.value.trim();
    if (name === this.name) this.#open(null);
    else if (name) this.#ask({ type: "rename", run: this.name, name });
  }

  /** @param {ManageRequest} request */
  #ask(request) {
    this.#say("");
    this.timer = window.setTimeout(() => this.#say(WAITING), PATIENCE);
    this.manage(request, (problem) => this.#say(problem));
  }

  /** @param {string} text */
  #say(text) {
    clearTimeout(this.timer);
    this.said.classList.toggle("bad", text !== "" && text !== WAITING);
    setText(this.said, text);
  }
}

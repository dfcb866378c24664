// @ts-check
/** The user's requests to the runs, and their outcomes. */
import { formatCount } from "./common.js";

/**
 * @typedef {"asked" | "waiting" | "sent" | "applied" | "refused" | "done" | "ended"} Phase
 *   asked: on its way to the kernel; waiting: the kernel has not answered; sent: in the run's folder;
 *   applied, refused: by the run; done: begun by the kernel; ended: the run was over before it took it
 * @typedef {{request: number, run: string, action: string, args: Record<string, any>, phase: Phase, id: string,
 *   said: string, answer: any, begun: string}} Request
 *   answer: the run's own, an action; begun: the key of the run that a fork has made
 */

const PATIENCE = 400; // milliseconds until the user is told that the kernel is busy
const START_PATIENCE = 4000; // of what the kernel does itself: it loads a model first
const MOST_REQUESTS = 60;
const LIVE_STATES = new Set(["starting", "running", "paused"]);
const OPEN = new Set(["asked", "waiting", "sent"]);

/** @param {any} card @returns {boolean} whether a trainer is active */
export function isLive(card) {
  return LIVE_STATES.has(card.state);
}

/** @param {Request | undefined} request @returns {boolean} whether its answer is still to come */
export function isOpen(request) {
  return request !== undefined && OPEN.has(request.phase);
}

export class Requests {
  /**
   * @param {(message: any) => void} send @param {() => void} changed called after any request has changed
   * @param {() => Map<string, any>} cards
   */
  constructor(send, changed, cards) {
    this.send = send;
    this.changed = changed;
    this.cards = cards;
    /** @type {Request[]} oldest first */
    this.all = [];
    this.count = 0;
    /** @type {Set<(request: Request) => void>} called once for each request when it is answered */
    this.listeners = new Set();
  }

  /** @param {string} run @param {string} action @param {Record<string, any>} [args] @returns {Request} */
  ask(run, action, args = {}) {
    /** @type {Request} */
    const request = { request: ++this.count, run, action, args, phase: "asked", id: "", said: "", answer: null, begun: "" };
    this.all.push(request);
    if (this.all.length > MOST_REQUESTS) this.all.shift();
    try {
      this.send({ type: "command", request: request.request, run, action, args });
    } catch (error) {
      request.said = `the kernel cannot be reached (${error instanceof Error ? error.message : error})`;
      this.#move(request, "refused");
      return request;
    }
    const patience = action === "start_again" || action === "fork" ? START_PATIENCE : PATIENCE;
    setTimeout(() => request.phase === "asked" && this.#move(request, "waiting"), patience);
    this.changed();
    return request;
  }

  /** @param {any} message "sent", "done" or "refused" @returns {boolean} whether it answers one of these */
  hear({ type, request: number, id, text, reason, run }) {
    const request = this.all.find((one) => one.request === number);
    if (!request) return false;
    request.said = String(text ?? reason ?? "");
    if (type === "sent") {
      request.id = id;
      if (isOpen(request)) this.#move(request, "sent");
      this.settle();
    } else {
      if (type === "done" && request.action === "fork") request.begun = String(run ?? "");
      this.#move(request, type);
    }
    return true;
  }

  /** Look for answers among the runs' actions. */
  settle() {
    for (const request of this.all) {
      if (request.phase !== "sent") continue;
      const card = this.cards().get(request.run);
      const answer = card?.actions.findLast((/** @type {any} */ action) => action.id === request.id);
      if (answer) {
        request.answer = answer;
        request.said = answer.reason;
        this.#move(request, answer.outcome === "refused" ? "refused" : "applied");
      } else if (card && !isLive(card)) this.#move(request, "ended");
    }
  }

  /**
   * @param {string} run @param {(request: Request) => boolean} [test] @returns {Request | undefined} the newest
   */
  newest(run, test = () => true) {
    return this.all.findLast((request) => request.run === run && test(request));
  }

  /** @param {string} run @param {string} action @returns {boolean} whether such a request is not answered yet */
  isPending(run, action) {
    return isOpen(this.newest(run, (request) => request.action === action));
  }

  /** @param {Request} request @param {Phase} phase */
  #move(request, phase) {
    request.phase = phase;
    if (!isOpen(request)) for (const listener of this.listeners) listener(request);
    this.changed();
  }
}

/** @param {Request} request @param {any} card its run's @returns {string} a sentence for the user */
export function describeRequest(request, card) {
  const what = wordsOf(request);
  switch (request.phase) {
    case "asked":
      return request.action === "start_again" ? "Resuming: the kernel is starting the run again…" : `${what}: asked…`;
    case "waiting":
      return waitingText(request, card, what);
    case "sent":
      return `${what}: sent; it takes effect ${card?.state === "starting" ? "once the run has started" : "at the next step"}…`;
    case "refused":
      return `${what}: refused${request.said ? `: ${request.said}` : ""}`;
    case "ended":
      return `${what}: the run ended before this took effect`;
    case "done":
      return request.said || `${what}: begun`;
    default:
      return appliedText(request, what);
  }
}

/** @param {Request} request @param {any} card @param {string} what */
function waitingText(request, card, what) {
  if (request.action === "start_again" || request.action === "fork") {
    return `${what}: not started yet; loading takes some seconds, and a busy kernel finishes its cell first.`;
  }
  const command = terminalCommand(request, card);
  const instead = command ? ` In a terminal: ${command}` : "";
  return `${what}: waiting: the kernel is busy with a cell; the run goes on.${instead}`;
}

/** @param {Request} request @param {string} what */
function appliedText(request, what) {
  const { action, step, args, text, past } = request.answer;
  const at = `at step ${formatCount(step)}`;
  if (action === "rewind" && args?.to != null) return `rewound from ${formatCount(step)} to ${formatCount(args.to)}`;
  return past ? `${past} ${at}` : `${text || what} applied ${at}`;
}

/** @param {Request} request @returns {string} a short description of the request */
export function wordsOf({ action, args }) {
  if (action === "set") return Object.entries(args).map(([name, value]) => `${name}=${value}`).join(", ");
  if (action === "rewind") return `rewind to ${formatCount(args.step)}`;
  if (action === "freeze" || action === "unfreeze") return `${action} ${args.patterns.join(", ")}`;
  if (action === "rule") return `rule ${args.name} ${args.on ? "on" : "off"}`;
  if (action === "fork") return `fork ${args.name}`;
  if (action === "start_again") return "resume";
  return action === "sample" ? action : [action, ...Object.entries(args).map(([name, value]) => `${name}=${value}`)].join(" ");
}

/** @param {Request} request @param {any} card @returns {string} the equivalent terminal command; "" if there is none */
export function terminalCommand({ action, args }, card) {
  const named = !card?.path || new RegExp(`(^|/)runs/[^/]+$`).test(card.path) ? card?.name : card.path;
  const begin = `nbllm runs steer ${shellWord(named ?? "")} ${action}`;
  if (action === "set") return [begin, ...Object.entries(args).map(([name, value]) => shellWord(`${name}=${value}`))].join(" ");
  if (action === "rewind") return `${begin} ${args.step}`;
  if (action === "sample") return `${begin} ${shellWord(args.prompt)}`;
  if (action === "freeze" || action === "unfreeze") return [begin, ...args.patterns.map(shellWord)].join(" ");
  if (action === "rule") return "";
  return [begin, ...Object.entries(args).map(([name, value]) => shellWord(`${name}=${value}`))].join(" ");
}

/** @param {string} text @returns {string} quoted as one word for a shell */
function shellWord(text) {
  return /^[\w.,=+\-/:@]+$/.test(text) ? text : `'${String(text).replaceAll("'", "'\\''")}'`;
}

# ruff: noqa: E501
"""A page with the training panel on a model that only pretends: it keeps what is sent, and says what a test says."""

from __future__ import annotations

import math
import random
import time
from typing import Any

from playwright.sync_api import Locator, Page

from nbllm.core.theme import THEME_CSS
from nbllm.runs.actions import ACTIONS
from nbllm.widgets.modules import STATIC

MOCK = """
async (url) => {
  window.panel = (await import(`${url}training.js`)).default();  // as anywidget: once for a model
  const { Chart } = await import(`${url}chart.js`);
  window.given = new Map();  // what each chart was given last, by its label
  window.draws = 0;
  const { setSeries, setMarks } = Chart.prototype;
  Chart.prototype.setSeries = function (series) {
    if (this.label === "Loss") draws++;
    given.set(this.label, { ...given.get(this.label), series });
    setSeries.call(this, series);
  };
  Chart.prototype.setMarks = function (marks) {
    given.set(this.label, { ...given.get(this.label), marks });
    setMarks.call(this, marks);
  };
  window.sent = [];
  window.listeners = new Set();
  window.broken = false;  // no kernel any more
  window.makeModel = () => ({  // as anywidget: another handle for each view
    send: (content) => {
      if (broken) throw new Error("comm is closed");
      sent.push(JSON.parse(JSON.stringify(content)));
    },
    on: (name, callback) => { if (name === "msg:custom") listeners.add(callback); },
    off: (name, callback) => { listeners.delete(callback); },
  });
  window.say = (content, columns) => {
    const wide = new Set(["step", "tokens", "seconds", "time"]);
    const buffers = [];
    if (columns) {
      content.columns = Object.entries(columns).map(([name, values]) => {
        const numbers = values.map((value) => (value === null ? NaN : value));
        const array = wide.has(name) ? Float64Array.from(numbers) : Float32Array.from(numbers);
        buffers.push(new DataView(array.buffer));
        return { name, dtype: wide.has(name) ? "float64" : "float32", length: values.length };
      });
    }
    for (const listener of [...listeners]) listener(content, buffers);
  };
  window.silent = false;  // a kernel that lives says so now and then
  setInterval(() => { if (!silent) for (const listener of [...listeners]) listener({ type: "alive" }, []); }, 1000);
  window.views = [];
  window.mount = () => {
    const el = document.createElement("div");
    document.querySelector("#cell").append(el);
    views.push({ el, close: panel.render({ model: makeModel(), el }) });
  };
  window.viewer = () => sent.find(({ type }) => type === "hello")?.viewer;
  window.settled = () => new Promise((done) => setTimeout(() => requestAnimationFrame(() => requestAnimationFrame(done)), 130));
}
"""


def make_card(key: str = "tour", **fields: Any) -> dict[str, Any]:
    """Return a card as nbllm/widgets/card.py makes it, of a run that goes on."""
    card: dict[str, Any] = {
        "key": key,
        "name": key,
        "path": f"runs/{key}",
        "color": 1,
        "state": "running",
        "step": 120,
        "steps": 600,
        "reason": "",
        "parent": None,
        "where": "thread",
        "host": "here",
        "time": time.time(),
        "settings": [
            setting("lr", 1e-3, help="Peak learning rate; the schedule multiplies it."),
            setting("weight_decay", 0.1, help="Decoupled decay, on matrices only.", range="at least 0 and at most 10"),
            setting("clip", 1.0, help="Largest norm of the gradient.", range="at least 1e-06 and at most 1e+06"),
            setting("accumulation", 1, kind="int", unit="passes", help="Forward passes in one step.", range="at least 1"),
            setting("steps", 600, kind="int", unit="steps", help="Steps in all; the schedule stretches.", range="at least 1"),
        ],
        "frozen": [],
        "cannot": {},
        "loss_unit": "nats/token",
        "scheduled": True,
        "facts": {
            "loss": 3.214,
            "lr": 9.1e-4,
            "grad_norm": 0.8,
            "tokens": 983040,
            "tokens_per_second": 12345.6,
            "memory": 1.42e9,
            "seconds": 81.0,
            "seconds_left": 324.0,
            "held_out_loss": 3.301,
            "bits_per_byte": 1.612,
        },
        "checkpoints": [checkpoint(step) for step in (40, 80, 120)],
        "actions": [],
        "num_actions": 0,
        "samples": [],
        "outputs": [],
        "warnings": [],
        "num_warnings": 0,
        "rules": [],
        "metrics": [],
        "problems": [],
    }  # fmt: skip
    return {**card, **fields}


def setting(
    name: str,
    value: float,
    *,
    kind: str = "float",
    unit: str = "",
    help: str = "",
    range: str = "at least 0 and at most 1",
) -> dict[str, Any]:
    return {"name": name, "kind": kind, "unit": unit, "help": help, "range": range, "value": value}


def checkpoint(step: int, *, on_branch: bool = True) -> dict[str, Any]:
    return {
        "step": step,
        "name": f"step-{step:08}",
        "bytes": 12_400_000,
        "time": time.time() - 600 + step,
        "on_branch": on_branch,
    }


def action(id: str, step: int, action: str, text: str = "", **fields: Any) -> dict[str, Any]:
    made = {
        "id": id, "step": step, "action": action, "args": {}, "text": text or action, "actor": "person",
        "past": ACTIONS[action].past if action in ACTIONS else "", "outcome": "applied", "reason": "", "time": time.time() - 60, "asked": None, "effective": True,
    }  # fmt: skip
    return {**made, **fields}


def sample(step: int, prompt: str, text: str, **fields: Any) -> dict[str, Any]:
    return {
        "step": step,
        "prompt": prompt,
        "text": text,
        "actor": "person",
        "time": time.time() - 30,
        "id": "",
        **fields,
    }


def steps_table(
    first: int, last: int, *, seed: int = 0, rate: float = 60.0, floor: float = 1.9
) -> dict[str, list[float]]:
    """Return the points of steps first..last of a training that looks like one."""
    noise = random.Random(seed)
    steps = list(range(first, last + 1))
    return {
        "step": [float(step) for step in steps],
        "loss": [floor + (8.3 - floor) * (1 + step / rate) ** -0.7 + noise.gauss(0, 0.09) for step in steps],
        "lr": [1e-3 * min(1, step / 60) * (0.55 + 0.45 * math.cos(math.pi * step / 600)) for step in steps],
        "grad_norm": [0.5 + 2 * (1 + step / 20) ** -1 + abs(noise.gauss(0, 0.1)) for step in steps],
        "tokens": [8192.0 * step for step in steps],
        "tokens_per_second": [12000 + noise.gauss(0, 300) for _ in steps],
        "memory": [1.42e9 + noise.gauss(0, 2e6) for _ in steps],
        "seconds": [0.68 * step for step in steps],
    }


class PanelPage:
    """The page, and what tests do with it."""

    def __init__(self, page: Page, static_url: str, *, width: int = 900, theme: str = "light") -> None:
        self.page = page
        self.width, self.theme = width, theme
        self.errors: list[str] = []
        self.seq = 0
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.route("**/blank", lambda route: route.fulfill(body="<!doctype html>", content_type="text/html"))
        page.goto(f"{static_url}blank")
        css = THEME_CSS + (STATIC / "training.css").read_text()
        ground = "#fff" if theme == "light" else "#0d1117"
        page.set_content(
            f"<!doctype html><html data-theme={theme}><style>body {{ margin: 0; background: {ground} }}"
            f" #cell {{ width: {width}px }}</style><style>{css}</style><body><div id=cell></div></body></html>"
        )
        page.evaluate(MOCK, static_url)
        page.evaluate("mount()")

    @property
    def panel(self) -> Locator:
        return self.page.locator(".nbllm-training").first

    @property
    def viewer(self) -> str:
        return self.page.evaluate("viewer()")

    def sent(self, kind: str) -> list[dict[str, Any]]:
        """Return the messages of a kind that the panel has sent."""
        return [message for message in self.page.evaluate("sent") if message["type"] == kind]

    def commands(self) -> list[tuple[str, str, dict[str, Any]]]:
        return [(m["run"], m["action"], m["args"]) for m in self.sent("command")]

    def say(self, kind: str, columns: dict[str, list[float]] | None = None, **fields: Any) -> None:
        """Say as the kernel, and wait until the panel has drawn."""
        self.page.evaluate(
            "([content, columns]) => say(content, columns)", [{"type": kind, **fields}, columns]
        )
        self.settle()

    def settle(self) -> None:
        self.page.evaluate("settled()")
        assert self.errors == []

    def snapshot(self, *cards: dict[str, Any], focus: str | None = None) -> None:
        cards = cards or (make_card(),)
        self.say("snapshot", to=self.viewer, seq=self.seq, focus=focus or cards[0]["key"], runs=list(cards))

    def update(self, key: str = "tour", **fields: Any) -> None:
        self.seq += 1
        self.say("update", seq=self.seq, runs=[{"key": key, **fields}])

    def points(
        self,
        columns: dict[str, list[float]],
        run: str = "tour",
        series: str = "steps",
        mode: str = "replace",
        **fields: Any,
    ) -> None:
        total = fields.pop("total", len(columns["step"]))
        self.say("points", columns, run=run, series=series, mode=mode, total=total, **fields)

    def answer(self, id: str = "a1") -> dict[str, Any]:
        """Say that the newest command lies in the run's folder; return it."""
        command = self.sent("command")[-1]
        self.say("sent", to=self.viewer, request=command["request"], id=id)
        return command

    def drawn(self, chart: str = "Loss") -> dict[str, dict[str, Any]]:
        """Return the series that a chart was given last, by key."""
        made = self.page.evaluate(
            """(label) => given.get(label).series.map(({ x, y, length, ...rest }) =>
              ({ ...rest, x: Array.from(x.subarray(0, length)), y: Array.from(y.subarray(0, length)) }))""",
            chart,
        )
        return {series["key"]: series for series in made}

    def marks(self) -> list[dict[str, Any]]:
        """Return the marks that the loss chart was given last."""
        return self.page.evaluate("given.get('Loss').marks")

    def outcome(self, part: str = ".panel-controls") -> Locator:
        """Return the line that says what became of what was asked in a part of the panel."""
        return self.panel.locator(f"{part} .panel-outcome")

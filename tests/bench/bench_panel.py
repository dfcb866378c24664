"""What the training panel costs and how quick it is, in a real JupyterLab: `python -m tests.bench.bench_panel`.

- throughput: a run of about 50 steps a second in the kernel's thread, in turn without viewers, with all that the
  kernel does for a viewer but no browser to draw it, with the panel open in the browser, which shares the cores,
  and while a person is at it, when it is brought up to date ten times as often.
- latency: from the click to the action's event, in this kernel and in another process.
- a run of 100,000 steps: until it is shown, and frames a second while zooming.
- an hour of 50 steps a second, replayed fast: the page's memory afterwards.

Nothing is asserted.
"""

from __future__ import annotations

import argparse
import ast
import functools
import http.server
import json
import math
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from playwright.sync_api import Page, sync_playwright

from nbllm.runs.events import EventWriter
from nbllm.runs.process import this_process
from nbllm.runs.run import Run
from nbllm.runs.store import create
from nbllm.training import TrainConfig
from nbllm.widgets.modules import STATIC
from tests.browser.conftest import ARGUMENTS, Quiet, chromium
from tests.browser.lab import Lab, Notebook
from tests.browser.panel_page import PanelPage

BEGIN = """
import time
import nbllm as nb
text = nb.data.load("pydocs").select(range(12))
tokenizer = nb.data.train_tokenizer(text, vocab_size=512)
def begin(name, where):
    lm = nb.LM.new("llama", tokenizer=tokenizer, num_layers=2, hidden_size=128, num_heads=4, max_positions=128)
    return nb.train(lm, text, name=name, where=where, steps=10**6, batch_size=2, sequence_length=128, lr=1e-3,
                    sample_interval=0, checkpoint_interval=0)
"""
TURNS = """
import json, random, threading
from nbllm.widgets.training import ATTENDED
panel = nb.panel(run)
time.sleep(3)
viewers, send = set(panel.viewers), panel.send
assert viewers
def dropped(content, buffers=None):
    json.dumps(content)
# What a page has missed it asks for, which is like a person at the panel: before it is measured, that is over.
ways = {"alone": (set(), send, 0.3), "kernel": (viewers, dropped, 0.3), "open": (viewers, send, ATTENDED + 2),
        "attended": (viewers, send, 2)}
rates = {way: [] for way in ways}
def measure():
    for turn in range(TURNS):
        for way in random.sample(list(ways), len(ways)):
            panel.viewers, panel.send = set(ways[way][0]), ways[way][1]
            if way == "attended":
                panel._heard = float("inf")
            elif panel._heard == float("inf"):
                panel._heard = -float("inf")
            time.sleep(ways[way][2])
            step, began = run.step, time.monotonic()
            time.sleep(SECONDS)
            rates[way].append((run.step - step) / (time.monotonic() - began))
    panel.viewers, panel.send = viewers, send
measuring = threading.Thread(target=measure)
measuring.start()
"""
SECONDS = 4.0  # of a turn
WAYS = (
    ("kernel", "the kernel's part"),
    ("open", "the panel open"),
    ("attended", "a person's hand on it"),
)


def throughput(lab: Lab, page: Page, turns: int) -> None:
    measure = TURNS.replace("TURNS", str(turns)).replace("SECONDS", str(SECONDS))
    lab.write(
        "throughput.ipynb",
        BEGIN,
        "run = begin('throughput', 'thread')\nrun",
        measure,
        "measuring.join(); print(rates)",
    )
    notebook = Notebook(lab, page, "throughput.ipynb").open("throughput")
    for index in (0, 1, 2):
        notebook.run(index, timeout=600_000)
    # Nothing is asked of the page meanwhile: waiting for something in it would keep it drawing.
    time.sleep(turns * (4 * SECONDS + 10) + 5)
    notebook.run(3, timeout=600_000)
    rates = ast.literal_eval(notebook.output(3).inner_text().strip())
    notebook.shut_down()
    alone = statistics.median(rates["alone"])
    print(
        f"throughput: {alone:.1f} steps/s alone (from {min(rates['alone']):.1f} to {max(rates['alone']):.1f})"
    )
    for way, words in WAYS:
        rate = statistics.median(rates[way])
        costs = [100 * (1 - one / other) for one, other in zip(rates[way], rates["alone"], strict=True)]
        print(
            f"            {rate:.1f} with {words}: it costs {100 * (1 - rate / alone):.1f} %; turn by turn "
            f"{statistics.median(costs):.1f} % (from {min(costs):.1f} to {max(costs):.1f})"
        )


def latency(lab: Lab, page: Page, clicks: int) -> None:
    for where in ("thread", "process"):
        name = f"latency-{where}"
        lab.write(f"{name}.ipynb", BEGIN, f"run = begin({name!r}, {where!r})\nrun")
        notebook = Notebook(lab, page, f"{name}.ipynb").open(name)
        notebook.run(0)
        notebook.run(1)
        run = Run(lab.root / "runs" / name)
        run.wait(step=50, progress=False)
        moments = run.history("seconds")[1]
        step = float(moments[-1] / len(moments))
        taken = []
        for click in range(clicks):
            label = "Pause" if click % 2 == 0 else "Resume"
            button = notebook.panel(1).get_by_role("button", name=label, exact=True)
            button.evaluate(
                "e => e.addEventListener('click', () => { window.clicked = Date.now(); }, {once: true, capture: true})"
            )
            button.click()
            clicked = page.evaluate("window.clicked") / 1000
            while not (answers := [e for e in run.events("action") if e["time"] >= clicked - 0.001]):
                time.sleep(0.005)
            taken.append(1000 * (answers[-1]["time"] - clicked))
            time.sleep(0.4)
        run.stop()
        notebook.shut_down()
        print(
            f"latency, {where}: click to applied {statistics.median(taken):.0f} ms"
            f" (worst of {clicks}: {max(taken):.0f}); a step takes {1000 * step:.0f} ms"
        )


def long_run(folder: Path, name: str, steps: int) -> Path:
    record = {
        "config": {"steps": steps, "lr": 1e-3},
        "settings": [s.to_dict() for s in TrainConfig().settings],
    }
    path, noise = create(folder, name, record), random.Random(0)
    with EventWriter(path) as writer:
        writer.write("start", 0, where="thread", from_step=0, **this_process())
        with open(writer.path, "a") as file:
            for step in range(1, steps + 1):
                numbers = {
                    "loss": 2 + 6 * math.exp(-step / 8000) + noise.gauss(0, 0.15),
                    "lr": 1e-3 * min(1, step / 1000),
                    "grad_norm": 1 + noise.random(),
                    "tokens": step * 2048,
                    "tokens_per_second": 1e5 + 1e4 * noise.random(),
                    "memory": 9e8 + step,
                    "seconds": step * 0.02,
                }
                file.write(
                    json.dumps({"time": 1.76e9 + step * 0.02, "kind": "step", "step": step, **numbers}) + "\n"
                )
        writer.write("end", steps, state="finished", reason="")
    return path


ZOOM = """
async (root) => {
  const canvas = root.querySelector("canvas"), box = canvas.getBoundingClientRect();
  const times = [];
  let last = performance.now();
  for (let turn = 0; turn < 150; turn++) {
    canvas.dispatchEvent(new WheelEvent("wheel", { bubbles: true, cancelable: true, ctrlKey: true,
      deltaY: turn % 50 < 25 ? -40 : 40, clientX: box.left + box.width * 0.6, clientY: box.top + 60 }));
    await new Promise(requestAnimationFrame);
    const now = performance.now();
    times.push(now - last);
    last = now;
  }
  return times;
}
"""


SHOWN = """
() => { window.shown = null; new MutationObserver(() => {
  if (!window.shown && [...document.querySelectorAll(".nbllm-panel")].some((e) => e.innerText.includes("100,000")))
    requestAnimationFrame(() => requestAnimationFrame(() => { window.shown = Date.now(); }));
}).observe(document.body, { subtree: true, childList: true, characterData: true, attributes: true }); }
"""


def long(lab: Lab, page: Page) -> None:
    long_run(lab.root / "runs", "long", 100_000)
    show = "began = time.time()\nnb.Run('runs/long')"
    lab.write(
        "long.ipynb", "import time\nimport nbllm as nb\nimport nbllm.widgets.training", show, "print(began)"
    )
    notebook = Notebook(lab, page, "long.ipynb").open("long")
    notebook.run(0)
    page.evaluate(SHOWN)
    notebook.run(1)
    page.wait_for_function("window.shown")
    page.wait_for_timeout(1500)
    notebook.run(2)
    seconds = page.evaluate("window.shown") / 1000 - float(notebook.output(2).inner_text().split()[-1])
    times = notebook.panel(1).evaluate(ZOOM)[10:]
    rate = 1000 / statistics.median(times)
    print(f"100,000 steps: shown {seconds:.2f} s after the cell began")
    print(f"               zooming {rate:.0f} frames/s (median), the worst frame {max(times):.0f} ms")
    notebook.shut_down()


def memory(page: Page, minutes: int) -> None:
    """Replay the updates of a run of 50 steps a second on a mock of the model, then look at the heap."""
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(STATIC))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    panel = PanelPage(page, f"http://127.0.0.1:{server.server_address[1]}/")
    panel.snapshot()
    client = page.context.new_cdp_session(page)
    client.send("Performance.enable")

    def heap() -> float:
        client.send("HeapProfiler.collectGarbage")
        found = {m["name"]: m["value"] for m in client.send("Performance.getMetrics")["metrics"]}
        return found["JSHeapUsedSize"] / 1e6

    before, updates = (heap(), renderer()), minutes * 60 * 10
    page.evaluate(REPLAY, updates)
    after = heap(), renderer()
    print(
        f"memory: after {updates:,} updates {after[0]:.0f} MB of JavaScript heap (before: {before[0]:.0f}), the page's "
        f"process {after[1]:.0f} MB unshared (before: {before[1]:.0f})"
    )


def renderer() -> float:
    """Return the unshared megabytes of the largest page of this process's browser."""
    pages = [p for p in psutil.Process().children(recursive=True) if "--type=renderer" in p.cmdline()]
    return max(p.memory_full_info().uss for p in pages) / 1e6


REPLAY = """
async (updates) => {
  let seq = 0;
  for (let update = 0; update < updates; update++) {
    const first = 1 + update * 5, steps = [...Array(5).keys()].map((i) => first + i);
    const facts = { loss: 2, lr: 1e-3, tokens: first * 2048 };
    say({ type: "update", seq: ++seq, runs: [{ key: "tour", step: first + 4, facts }] });
    say({ type: "points", run: "tour", series: "steps", mode: "append", cut: first - 1, total: first + 4 }, {
      step: steps, loss: steps.map(() => 2 + Math.random()), lr: steps.map(() => 1e-3), grad_norm: steps.map(() => 1),
      tokens: steps.map((s) => s * 2048), tokens_per_second: steps.map(() => 1e5), memory: steps.map(() => 9e8),
      seconds: steps.map((s) => s / 50), time: steps.map((s) => 1.7e9 + s / 50) });
    if (update % 50 === 0) await new Promise(requestAnimationFrame);
  }
  await settled();
}
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("throughput", "latency", "long", "memory"))
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--clicks", type=int, default=20)
    options = parser.parse_args()
    lab = Lab(Path(tempfile.mkdtemp()))
    parts: dict[str, Callable[[Page], None]] = {
        "throughput": lambda page: throughput(lab, page, options.turns),
        "latency": lambda page: latency(lab, page, options.clicks),
        "long": lambda page: long(lab, page),
        "memory": lambda page: memory(page, 60),
    }
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
            for name, part in parts.items():
                if options.only in (None, name):
                    page = browser.new_page(viewport={"width": 1200, "height": 1000})
                    part(page)
                    page.close()
            browser.close()
    finally:
        lab.close()


if __name__ == "__main__":
    main()

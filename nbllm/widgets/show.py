"""What a cell shows of a run: its live panel, and beneath it the static picture that outlives the kernel."""

from __future__ import annotations

import collections
import os
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from IPython.core.getipython import get_ipython
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display

from nbllm.core.io import expand_user
from nbllm.core.showing import show_with

if TYPE_CHECKING:
    from anywidget import AnyWidget

    from nbllm.core.report.report import Report
    from nbllm.data.pipeline.prepared import Prepared
    from nbllm.data.pipeline.prepared_dataset import PreparedDataset
    from nbllm.runs.listing import RunList
    from nbllm.runs.run import Run
    from nbllm.training.external_loop import Loop
    from nbllm.widgets.base import Panel
    from nbllm.widgets.chat import ChatPanel
    from nbllm.widgets.runs import RunsPanel
    from nbllm.widgets.training import TrainingPanel

# JupyterLab shows the snapshot only where the live panel is not: closed kernel, no widgets, no trust.
_SNAPSHOT_CSS = """
.jp-OutputArea-child:has(.nbllm-panel) + .jp-OutputArea-child:has(.nbllm-snapshot) { display: none; }
.jp-OutputArea-child:has(.jupyter-widgets):not(:has(.nbllm-panel)):has(+ .jp-OutputArea-child .nbllm-snapshot) {
  display: none; }
"""
# A report's examples below it are hidden where they cannot be browsed: it shows the first of them itself.
_EXAMPLES_CSS = """
.jp-OutputArea-child:has(.nbllm-static) + .jp-OutputArea-child:has(.jupyter-widgets):not(:has(.nbllm-browser)) {
  display: none; }
"""

run_panels: list[TrainingPanel] = []  # one for each run that was shown
_list_panels: dict[Path, RunsPanel] = {}  # one for each folder of runs
_snapshots: collections.deque[Snapshot] = collections.deque(
    maxlen=20
)  # the newest outputs are kept up to date


class Pictured(Protocol):
    """What has a static picture, which changes when its text does."""

    def _repr_html_(self) -> str: ...


class Snapshot:
    """The static picture of something in a cell's output, brought up to date while the kernel lives.

    Args:
        shell: The notebook's shell.
        thing: What has the picture.
    """

    def __init__(self, shell: InteractiveShell, thing: Pictured) -> None:
        self._shell = shell
        self._thing = thing
        self._id = uuid.uuid4().hex
        self._shown = ""

    def show(self) -> None:
        """Publish the picture, or its update where the text of it has changed."""
        text = repr(self._thing)
        if text == self._shown:
            return
        html = f'<div class="nbllm-snapshot"><style>{_SNAPSHOT_CSS}</style>{self._thing._repr_html_()}</div>'
        data, update = {"text/html": html, "text/plain": text}, bool(self._shown)
        self._shown = text
        self._shell.display_pub.publish(data, transient={"display_id": self._id}, update=update)


def panel(run: Run | str | Path) -> Panel:
    """Return the live panel of a run: one a run and kernel, however often it is shown.

    Args:
        run: The run, its folder, or its name in `runs/`.

    Raises:
        RunError: There is no run.
    """
    from nbllm.runs.run import Run
    from nbllm.widgets.training import TrainingPanel

    if not isinstance(run, Run):
        from nbllm.training import attach

        run = attach(run)
    created = run.record.get("created")
    for known in run_panels:
        if known.run.path == run.path and known.created == created:  # else another run has taken the name
            return known
    run_panels.append(TrainingPanel(run, on_change=refresh))
    return run_panels[-1]


def install(shell: InteractiveShell) -> None:
    """Make this shell show runs as panels; called when nbllm is imported in a notebook."""
    assert shell.display_formatter is not None
    formatter = shell.display_formatter.ipython_display_formatter
    formatter.for_type_by_name("nbllm.runs.run", "Run", _show_run)
    formatter.for_type_by_name("nbllm.runs.listing", "RunList", _show_runs)
    formatter.for_type_by_name("nbllm.training.external_loop", "Loop", _show_loop)
    formatter.for_type_by_name("nbllm.widgets.chat", "ChatPanel", _show_chat)
    formatter.for_type_by_name("nbllm.core.report.report", "Report", _show_report)
    formatter.for_type_by_name("nbllm.data.pipeline.prepared", "Prepared", _show_prepared)
    formatter.for_type_by_name("nbllm.data.pipeline.prepared_dataset", "PreparedDataset", _show_prepared_data)
    shell.events.register("post_run_cell", lambda *_: refresh())
    show_with(display)


def _show_run(run: Run) -> None:
    _show(panel(run), f"Run {run.name!r}", run)


def _show_loop(loop: Loop) -> None:
    loop.shown = True
    _show_run(loop.run)


def _show_runs(runs: RunList) -> None:
    from nbllm.widgets.runs import RunsPanel

    folder = expand_user(runs.folder).resolve()
    if folder not in _list_panels:
        _list_panels[folder] = RunsPanel(runs)
    _show(_list_panels[folder], f"Runs in {runs.folder}", runs)


def _show_chat(panel: ChatPanel) -> None:
    _show(panel, panel.title, panel)


def _show_prepared(prepared: Prepared) -> None:
    from nbllm.widgets.data import DataPanel

    _show(DataPanel(prepared), f"Data prepared in {prepared.folder.name!r}", prepared)


def _show_prepared_data(data: PreparedDataset) -> None:
    _show_prepared(data.prepared)


def _show_report(report: Report) -> None:
    """Publish the report, and below it its examples to browse."""
    from nbllm.core.report.sections import Rows
    from nbllm.widgets.report import ExamplesPanel

    shell = get_ipython()
    assert shell is not None
    html = f'<div class="nbllm-static"><style>{_EXAMPLES_CSS}</style>{report._repr_html_()}</div>'
    shell.display_pub.publish(
        {"text/html": html, "text/markdown": report._repr_markdown_(), "text/plain": repr(report)}
    )
    if any(isinstance(section, Rows) and len(section) for section in report.sections):
        bundle, metadata = _bundle(ExamplesPanel(report))
        shell.display_pub.publish({**bundle, "text/plain": "The examples of the report."}, metadata)


def _show(panel: Panel, title: str, thing: Pictured) -> None:
    shell = get_ipython()
    assert shell is not None
    bundle, metadata = _bundle(panel)
    bundle["text/plain"] = title
    if _shows_one_output():
        bundle["text/html"] = thing._repr_html_()
        shell.display_pub.publish(bundle, metadata)
        return
    shell.display_pub.publish(bundle, metadata)  # first: reading a long run takes longer than a browser needs
    snapshot = Snapshot(shell, thing)
    snapshot.show()
    _snapshots.append(snapshot)


def _bundle(panel: AnyWidget) -> tuple[dict[str, Any], dict[str, Any]]:
    made = panel._repr_mimebundle_()
    data, metadata = made if isinstance(made, tuple) else (made, {})
    return dict(data or {}), dict(metadata or {})


def _shows_one_output() -> bool:
    """Say whether this front end has no means to hide the snapshot beneath a live panel."""
    return "google.colab" in sys.modules or "VSCODE_PID" in os.environ


def refresh() -> None:
    """Bring the pictures of the newest outputs up to date."""
    for snapshot in list(_snapshots):
        snapshot.show()

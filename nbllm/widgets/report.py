"""The panel of a report: its examples browsed in a cell, below the report itself."""

from __future__ import annotations

import anywidget
import traitlets

from nbllm.core.report.examples import EXAMPLES_CSS, examples_json, examples_script
from nbllm.core.report.report import Report
from nbllm.core.theme import THEME_CSS

MOST_BYTES = 8_000_000  # that a kernel sends a notebook at once

_RENDER = """
export default {
  render({ model, el }) {
    const host = document.createElement("div");
    host.className = "nbllm nbllm-browser";
    el.append(host);
    try {
      const data = model.get("data");
      browse(host, JSON.parse(new TextDecoder().decode(data)));
    } catch (error) {
      host.textContent = `The examples cannot be shown: ${error}`;
    }
  },
};
"""


class ExamplesPanel(anywidget.AnyWidget):
    """The examples of a report: sorted, filtered and unfolded in the browser, which has them all.

    It needs nothing of the kernel once it is shown, and shows the same as the report's page.

    Args:
        report: The report.
    """

    _esm = examples_script() + _RENDER
    _css = THEME_CSS + EXAMPLES_CSS

    data = traitlets.Bytes().tag(sync=True)

    def __init__(self, report: Report) -> None:
        super().__init__(data=examples_json(report, MOST_BYTES))

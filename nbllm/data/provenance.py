"""Where text comes from, as records and reports say it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def source_of(data: Any) -> str:
    """Return a description of where a text comes from; "" where that is not known.

    Args:
        data: Anything that `nbllm.data.load` takes or returns. A data set has the description that `load` gave it (the
            source, its files, what was left out); of a path only the last part, since the rest names folders of the
            person's own machine.
    """
    if isinstance(data, (str, os.PathLike)):
        return Path(data).name
    return str(getattr(getattr(data, "info", None), "description", None) or "")

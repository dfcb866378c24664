"""What a panel shows of a run beside its curves, as plain JSON; the front end escapes it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nbllm.core.terminal import visible
from nbllm.runs.actions import ACTIONS, Action, words
from nbllm.runs.checkpoint import CheckpointInfo
from nbllm.runs.events import Event, is_number
from nbllm.runs.patterns import frozen_after
from nbllm.runs.rank_logs import log_end, log_size, ranks_with_logs
from nbllm.runs.rank_states import rank_states
from nbllm.runs.run import Run
from nbllm.runs.store import RECORD
from nbllm.runs.summary import RunSummary, seconds_left
from nbllm.runs.timeline import Timeline
from nbllm.widgets.profile_card import ProfileCards

NUM_COLORS = 6
ESTIMATE_SECONDS = 1.0  # how often the time left is estimated
MOST_ACTIONS = 200
MOST_SAMPLES = 20
MOST_WARNINGS = 20
MOST_OUTPUTS = 16  # ranks whose output is shown
MOST_OUTPUT = 4000  # characters of each
MOST_TEXT = 20_000  # characters of a sample
GONE = "the run's folder was renamed, moved or deleted"
FACTS = (
    "lr",
    "grad_norm",
    "tokens",
    "tokens_per_second",
    "memory",
    "seconds",
    "loss",
    "held_out_loss",
    "bits_per_byte",
)
USUAL = frozenset(
    {"loss", "lr", "grad_norm", "tokens", "tokens_per_second", "memory", "seconds", "time", "step"}
)

Card = dict[str, Any]


class CardMaker:
    """Makes the cards of one run; slow parts are recomputed only when they may have changed."""

    def __init__(self, run: Run, color: int) -> None:
        self.run = run
        self.color = color
        self._checkpoints: list[CheckpointInfo] = []
        self._checkpoints_of: tuple[int, int] | None = None
        self._shown_outputs: list[dict[str, Any]] = []
        self._outputs_of: list[tuple[int, int | None, int]] = []
        self._profiles = ProfileCards()
        self._left: float | None = None
        self._estimated = -ESTIMATE_SECONDS
        self._made: dict[str, tuple[object, list[Any]]] = {}  # by list, and the event that was its newest

    def card(self) -> Card:
        """Return the run's card as it is now."""
        run = self.run
        with run.guard:
            summary, timeline, settings = run.summary, run.timeline, run.settings
            parent = {"run": summary.parent, "step": summary.parent_step} if summary.parent else None
            is_gone = not (run.path / RECORD).is_file()
            return {
                "key": run.name,
                "name": run.name,
                "path": str(run.path),
                "color": 1 + self.color % NUM_COLORS,
                "state": summary.label,
                "gone": is_gone,
                "step": summary.step,
                "steps": summary.steps,
                "reason": summary.reason,
                "parent": parent,
                "replay_of": visible(summary.replay_of),
                "where": str(run.record.get("where", "")),
                "host": str(run.record.get("host", "")),
                "created": summary.created,
                "time": summary.last_time,
                "settings": [_setting(setting, settings.values) for setting in settings],
                "frozen": self._kept(
                    "frozen",
                    timeline.actions,
                    lambda: list(frozen_after(run.config.get("freeze"), timeline.effective)),
                ),
                "cannot": dict.fromkeys(ACTIONS, GONE) if is_gone else run.cannot,
                "facts": self._facts(summary),
                "loss_unit": summary.loss_unit,
                "scheduled": isinstance(run.config.get("schedule"), str),
                "checkpoints": self._shown_checkpoints(timeline),
                "actions": self._kept("actions", timeline.actions, lambda: _actions(timeline)),
                "num_actions": len(timeline.actions),
                "samples": self._kept(
                    "samples",
                    timeline.samples,
                    lambda: [_sample(e) for e in timeline.samples[-MOST_SAMPLES:]],
                ),
                "warnings": self._kept(
                    "warnings",
                    timeline.warnings,
                    lambda: [_warning(e) for e in timeline.warnings[-MOST_WARNINGS:]],
                ),
                "num_warnings": timeline.num_warnings,
                "outputs": self._outputs(),
                "ranks": self._ranks(timeline),
                "ranks_step": 0 if timeline.ranks is None else timeline.ranks["step"],
                "profile": self._profiles.newest(run.path),
                "rules": [rule.to_card() for rule in run.rules],
                "metrics": [name for name in timeline.steps.columns if name not in USUAL],
                "problems": run.problems,
            }

    def _kept(self, name: str, events: Sequence[object], make: Callable[[], list[Any]]) -> list[Any]:
        """Return what `make` makes of events, remade only after a new event: cards are made ten times a second."""
        newest = events[-1] if events else None
        if name not in self._made or self._made[name][0] is not newest:
            self._made[name] = newest, make()
        return self._made[name][1]

    def _ranks(self, timeline: Timeline) -> list[dict[str, Any]]:
        newest = [timeline.ranks] if timeline.ranks else []

        def finite(value: float) -> float | None:
            return value if math.isfinite(value) else None

        return self._kept(
            "ranks",
            newest,
            lambda: [
                {
                    "rank": state.rank,
                    "memory": finite(state.memory),
                    "seconds": finite(state.seconds),
                    "computing": finite(state.computing),
                    "slow": state.is_slow,
                    "held": [finite(state.weights), finite(state.gradients), finite(state.optimizer)],
                }
                for state in rank_states(timeline.ranks)
            ],
        )

    def _facts(self, summary: RunSummary) -> dict[str, float | None]:
        facts: dict[str, float | None] = {name: getattr(summary, name) for name in FACTS}
        facts["seconds_left"] = self._seconds_left() if summary.state == "running" else None
        return facts

    def _seconds_left(self) -> float | None:
        """Return the time left, which is estimated once a second, so that it can be read."""
        if time.monotonic() - self._estimated >= ESTIMATE_SECONDS:
            self._estimated, self._left = time.monotonic(), seconds_left(self.run.timeline, self.run.steps)
        return self._left

    def _shown_checkpoints(self, timeline: Timeline) -> list[dict[str, Any]]:
        stamp = self._folder_stamp()
        if stamp is None or stamp != self._checkpoints_of:
            self._checkpoints, self._checkpoints_of = self.run.checkpoints, stamp
        return [
            {
                "step": info.step,
                "name": info.name,
                "bytes": info.bytes,
                "time": info.time,
                "on_branch": timeline.on_branch(info),
            }
            for info in self._checkpoints
        ]

    def _outputs(self) -> list[dict[str, Any]]:
        """Return what the ranks of a launched run have printed last, that of the rank that failed first of all."""
        if not self.run.record.get("launch"):
            return []
        path, failed = self.run.path, self.run.failed_rank
        ranks = sorted(ranks_with_logs(path), key=lambda rank: (rank != failed, rank))[:MOST_OUTPUTS]
        stamps = [(rank, failed, log_size(path, rank)) for rank in ranks]
        if stamps != self._outputs_of:
            self._outputs_of = stamps
            self._shown_outputs = [
                {"rank": rank, "failed": rank == failed, "text": log_end(path, rank)[-MOST_OUTPUT:]}
                for rank in ranks
            ]
        return self._shown_outputs

    def _folder_stamp(self) -> tuple[int, int] | None:
        try:
            found = (self.run.path / "checkpoints").stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino


def changes(before: Card, after: Card) -> Card:
    """Return the fields of a card that differ, and its key; an empty one when none does."""
    changed = {name: value for name, value in after.items() if before.get(name, ...) != value}
    return {"key": after["key"], **changed} if changed else {}


def _setting(setting: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    value = values.get(setting.name)
    return {
        "name": setting.name,
        "kind": setting.kind,
        "unit": setting.unit,
        "help": setting.help,
        "range": setting.range_text,
        "value": value if is_number(value) else None,
    }


def _actions(timeline: Timeline) -> list[dict[str, Any]]:
    effective = {action.index for action in timeline.effective}
    return [_action(action, effective) for action in timeline.actions[-MOST_ACTIONS:]]


def _action(action: Action, effective: set[int]) -> dict[str, Any]:
    return {
        "id": action.id,
        "step": action.step,
        "action": action.action,
        "args": {name: _plain(value) for name, value in action.args.items()},
        "text": words(action.action, action.args),
        "past": ACTIONS[action.action].past if action.action in ACTIONS else "",
        "actor": action.actor,
        "outcome": action.outcome,
        "reason": action.reason,
        "time": action.time,
        "asked": action.asked,
        "effective": action.index < 0 or action.action == "rewind" or action.index in effective,
    }


def _sample(event: Event) -> dict[str, Any]:
    return {
        "step": event["step"],
        "time": event["time"],
        "prompt": visible(_text(event.get("prompt"))),
        "text": visible(_text(event.get("text"))),
        "reference": visible(_text(event["reference"])) if "reference" in event else None,
        "actor": _text(event.get("actor"))[:200],
        "id": _text(event.get("id"))[:40],
    }


def _warning(event: Event) -> dict[str, Any]:
    return {"step": event["step"], "time": event["time"], "text": _text(event.get("text"))[:2000]}


def _text(value: object) -> str:
    return "" if value is None else str(value)[:MOST_TEXT]


def _plain(value: Any) -> Any:
    """Return an argument as JSON that a browser can read; no NaN, nothing long."""
    if isinstance(value, bool) or value is None or is_number(value):
        return value
    if isinstance(value, list):
        return [_plain(item) for item in value[:50]]
    return str(value)[:500]

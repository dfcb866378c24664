from __future__ import annotations

from nbllm.runs.events import EventWriter
from nbllm.runs.process import this_process
from nbllm.runs.run import Run
from nbllm.runs.store import create
from nbllm.runs.text import details


def test_details_say_what_happened_and_obey_no_control_codes(tmp_path):
    path = create(tmp_path, "first", {"config": {"steps": 10}})
    with EventWriter(path) as writer:
        writer.write("start", 0, from_step=0, where="process", **this_process())
        writer.write("step", 3, loss=2.5)
        writer.write("sample", 3, prompt="a\x1b[2J", text="\u202eb\nc", seed=1, actor="loop")
        asked = {"id": "0" * 16, "actor": "agent:x", "outcome": "refused", "reason": "too high"}
        writer.write("action", 3, action="set", args={"lr": 7}, **asked)
        writer.write("warning", 3, text="odd")
        writer.write("end", 3, state="stopped", reason="asked to stop", digest=None)
    text = details(Run(path))
    assert "step 3 of 10" in text
    assert "stopped" in text
    assert "asked to stop" in text
    assert "lr=7 refused (agent:x): too high" in text
    assert "warning  step 3: odd" in text
    assert not any(ord(sign) < 32 for sign in text.replace("\n", ""))
    assert "\u202e" not in text
    assert str(path) in text

from __future__ import annotations

import pytest

from nbllm.core.errors import RefusedError
from nbllm.training.checks import refusal


def test_what_refuses_an_action_and_what_ends_the_run():
    refused = RefusedError("nothing would be left", hint="Freeze less.")
    assert refusal("freeze", refused) == "nothing would be left Freeze less."
    assert refusal("no such action", refused) == "nothing would be left Freeze less."
    assert refusal("evaluate", RuntimeError("no memory")) == "RuntimeError: no memory"
    broken = RuntimeError("half of it is set")
    with pytest.raises(RuntimeError) as raised:
        refusal("set", broken)
    assert raised.value is broken

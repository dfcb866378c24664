from __future__ import annotations

import pickle

import pytest
from IPython.core.interactiveshell import InteractiveShell

from nbllm.core.errors import DataError, UserError, nearest


def test_the_message_says_what_where_and_how_to_mend():
    error = DataError("It is odd.", where="file.txt, line 3", hint="Straighten it.")
    assert str(error) == "It is odd.\n  where: file.txt, line 3\n  hint:  Straighten it."
    assert isinstance(error, ValueError)
    assert str(UserError("Only this.")) == "Only this."


def test_errors_cross_process_boundaries():
    error = pickle.loads(pickle.dumps(DataError("a", where="b", hint="c")))
    assert (type(error), error.what, error.where, error.hint) == (DataError, "a", "b", "c")


def test_a_notebook_shows_the_message_without_our_insides(capsys):
    shell = InteractiveShell()
    shell.run_cell(
        "from nbllm.core.errors import UserError\nraise UserError('It is odd.', hint='Straighten it.')"
    )
    out = capsys.readouterr().out
    assert "UserError: It is odd." in out
    assert "Straighten it." in out
    assert "Traceback" not in out


@pytest.mark.parametrize(
    ("name", "hint"),
    [("stpes", "Did you mean 'steps'?"), ("xyz", "Known: lr, steps."), ("", "Known: lr, steps.")],
)
def test_the_nearest_name(name, hint):
    assert nearest(name, ["steps", "lr"]) == hint

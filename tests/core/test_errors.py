from __future__ import annotations

import pickle

import pytest
from IPython.core.interactiveshell import InteractiveShell

from nbllm.core.errors import DataError, UserError, listed, nearest


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


def test_hostile_text_in_a_message_is_shown_not_obeyed():
    error = UserError(
        "No column '\x1b]0;owned\x07'.", where="a\nhint: run rm\u202e.csv", hint="Use '\x9b31m\ud800'."
    )
    for text in (str(error), error.one_line, error._render_traceback_()[0]):
        text.encode()
        assert not any(sign in text for sign in "\x1b\x07\x9b\u202e")
    assert str(error).count("\n") == 2  # the file's name makes no line of its own


def test_a_message_about_a_million_names_is_short():
    names = [f"column {n}" for n in range(1_000_000)]
    assert len(str(UserError(", ".join(names), where=", ".join(names), hint=", ".join(names)))) < 7000
    assert len(nearest("x" * 5000, names)) < 1000
    assert listed(names[:3]) == "'column 0', 'column 1', 'column 2'"
    assert listed(names, most=1) == "'column 0' and 999,999 more"
    assert listed([]) == "none"

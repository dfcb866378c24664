import doctest

from nbllm.core import text_table as module
from nbllm.core.text_table import text_table


def test_the_example_in_the_docstring_holds():
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


def test_columns_are_as_wide_as_their_widest_cell_and_lines_end_without_space():
    assert text_table([("a", "long header"), ("wider", "b"), ("", "")]) == "a      long header\nwider  b\n"


def test_a_hostile_cell_is_shown_not_obeyed():
    assert text_table([("a\x1b[31m\nb", "c")]) == "a\ufffd[31m\ufffdb  c"

"""Draft tokens from what a text has said before."""

import pytest

from nbllm.inference.drafters.prompt_lookup import PromptLookup


def test_a_draft_is_what_followed_last_time():
    tokens = [1, 2, 3, 4, 5, 6, 7, 1, 2, 3]
    assert PromptLookup().propose(tokens, 9) == [4, 5], "a first draft is short"
    assert PromptLookup().propose(tokens, 1) == [4]
    assert PromptLookup().propose(tokens, 0) == []


def test_the_longer_ending_and_the_later_place_are_preferred():
    assert PromptLookup().propose([1, 2, 3, 10, 11, 12, 9, 2, 3, 20, 21, 22, 1, 2, 3], 3) == [10, 11]
    assert PromptLookup().propose([1, 2, 3, 10, 0, 1, 2, 3, 20, 21, 22, 1, 2, 3], 3) == [20, 21]


def test_a_text_that_repeats_itself_is_drafted_to_go_on_so():
    assert PromptLookup().propose([5, 6, 5, 6, 5], 3) == [6, 5]
    assert PromptLookup().propose([5] * 4, 3) == [5, 5]


@pytest.mark.parametrize("tokens", [[], [1], [1, 2], [1, 2, 3, 4, 5]])
def test_nothing_is_drafted_where_the_ending_is_new(tokens):
    assert PromptLookup().propose(tokens, 3) == []


def test_accepted_drafts_grow():
    drafter, text = PromptLookup(), [*range(1, 14), 0, 1, 2, 3]
    assert drafter.propose(text, 9) == [4, 5]
    text += [4, 5, 6]  # both accepted, and the token after them
    assert drafter.propose(text, 9) == [7, 8, 9, 10, 11, 12, 13]
    text += [7, 99, 1, 2]  # one accepted
    assert drafter.propose(text, 9) == [3, 4]


def test_rejected_drafts_make_it_wait_longer_and_longer():
    drafter, text, waits = PromptLookup(), [1, 2] * 3, []
    for _ in range(7):
        wait = 0
        while not drafter.propose(text, 3):
            text.append(1 + (text[-1] == 1))
            wait += 1
        waits.append(wait)
        text += [100 + len(waits), 1, 2]
    assert waits == [0, 2, 4, 8, 16, 32, 32]


def test_tokens_may_come_several_at_a_time():
    """As they do after an accepted draft: what is proposed does not depend on it."""
    text = [7, 8, 9] * 9
    one_by_one, at_once = PromptLookup(), PromptLookup()
    for end in range(1, len(text)):
        one_by_one.propose(text[:end], 0)
    assert one_by_one.propose(text, 3) == at_once.propose(text, 3) == [7, 8]

"""What a drafter is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

MAX_DRAFT_TOKENS = 7  # of a step: what the newest token is followed by, at most


class Drafter(Protocol):
    """Proposes how one sequence may go on.

    The model reads the draft tokens together with the newest token and thereby gives the logits after each; a draft
    token counts only where it is the one chosen from them. So drafts change the speed and not the text.

    Source: Leviathan et al. 2023, arXiv:2211.17192, for drafts in general; here the choice itself is made anew from the
    model's own distribution, with the random number that it would have without a draft.
    """

    def propose(self, tokens: list[int], most: int) -> list[int]:
        """Return draft tokens.

        Args:
            tokens: Prompt and text so far. From call to call only more tokens are added at the end.
            most: So many draft tokens at most are read; may be 0.
        """


MakeDrafter = Callable[[], Drafter]  # called once a sequence

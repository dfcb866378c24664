"""UL2's mixture: as much of each denoiser, told by its mode token, each with its published rate."""

import numpy as np
import pytest

from nbllm.objectives import MixtureOfDenoisers
from nbllm.objectives.mixture_of_denoisers import MODES


def test_each_denoiser_has_its_share_and_its_rate_over_a_million_tokens(tokenizer, plain):
    objective = MixtureOfDenoisers.for_tokenizer(tokenizer)
    length = objective.window_length(512)
    batch = objective.batch(plain(2000, length), np.random.default_rng(0))
    inputs, mask, targets = (batch[name].numpy() for name in ("inputs", "mask", "targets"))
    assert inputs.shape[1] <= 512
    modes = tokenizer.convert_ids_to_tokens(inputs[:, 0])
    sentinels = set(objective.sentinels.tolist())
    seen = {}
    for row in range(2000):
        counted = targets[row][targets[row] != -100]
        spans = sum(token in sentinels for token in counted.tolist())
        assert spans == sum(token in sentinels for token in inputs[row][mask[row]].tolist())
        noise = len(counted) - spans - 1
        assert mask[row].sum() == 1 + length - noise + spans + 1
        seen.setdefault((modes[row], noise, spans), []).append(row)
    expected = {(mode.token, *mode.corruption.counts(length)) for mode in MODES}
    assert set(seen) == expected and len(seen) == 7
    for (token, noise, spans), rows in seen.items():
        assert len(rows) / 2000 == pytest.approx(1 / 7, abs=0.03)
        assert noise / length == pytest.approx({"[R]": 0.15, "[S]": 0.25}.get(token, 0.5), abs=0.002) or (
            token == "[X]" and spans == 1 and noise / length == pytest.approx(0.15, abs=0.002)
        )
    (sequential,) = (rows for (token, *_), rows in seen.items() if token == "[S]")
    row = sequential[0]
    last = inputs[row][mask[row]][-2:]
    assert (
        last[0] == objective.sentinels[0] and last[1] == tokenizer.eos_token_id
    )  # the end of the text is missing

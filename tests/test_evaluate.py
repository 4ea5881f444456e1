"""The loss that is reported: each token counts once."""

import math

import numpy as np
import pytest

from minisl.data import validation_batches
from minisl.evaluate import evaluate
from minisl.nn import Llama, LlamaConfig

TOKENS = np.random.default_rng(0).integers(0, 11, 24)  # with windows of 5: four full ones and one of three


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_loss_is_the_mean_over_tokens(batch_size):
    """Against one prediction at a time: no n + 1, no padding counted, no batch weighted by itself."""
    model = Llama(LlamaConfig(8, 12, 1, 2, vocab_size=11), np.random.default_rng(0), dtype="float64")
    for p in model.parameters():
        p.data *= 20  # far from uniform
    nats = []
    for start in range(0, 23, 5):
        window = TOKENS[start : start + 6]
        for seen in range(1, len(window)):
            z = model(window[None, :seen]).data[0, -1]
            nats.append(np.log(np.exp(z - z.max()).sum()) + z.max() - z[window[seen]])
    assert len(nats) == 23
    assert np.std(nats) > 0.5
    result = evaluate(model, validation_batches(TOKENS, batch_size, seq_len=5), n_bytes=40, end=3)
    assert result["val_loss"] == pytest.approx(np.mean(nats), rel=1e-10)
    assert result["perplexity"] == pytest.approx(math.exp(np.mean(nats)), rel=1e-10)
    text = np.array(nats)[TOKENS[1:] != 3]  # 3 is the mark between documents
    assert 0 < len(text) < 23
    assert result["bits_per_byte"] == pytest.approx(text.sum() / math.log(2) / 40, rel=1e-10)

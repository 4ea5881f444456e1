"""The loss that is reported: each token counts once."""

import json
import math

import numpy as np
import pytest
from test_train import run_job

from minisl.command import run_command
from minisl.data import validation_batches
from minisl.evaluate import evaluate, main
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


def test_files_of_a_stream_that_changed_are_not_the_run_s(tmp_path, capsys):
    """They were evaluated, as the run's held-out text. One record more is not held out, and is said."""
    path = tmp_path / "a.jsonl"
    records = [json.dumps({"text": f"document {n} " + "word " * 9}) + "\n" for n in range(60)]
    path.write_text("".join(records))
    run = run_job(tmp_path, data=path, steps=2)
    capsys.readouterr()
    assert run_command(main, [str(run)]) == 0
    before = capsys.readouterr().out
    assert f"on {path} (" in before
    path.write_text("".join([*records, json.dumps({"text": "another"}) + "\n"]))
    assert run_command(main, [str(run)]) == 0
    out, err = capsys.readouterr()
    assert out == before
    assert f"--data {path}: has another size than when this run was saved" in err
    path.write_text("".join(records).replace("document", "a document"))
    assert run_command(main, [str(run)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"--data {path}: is not what this run was trained on" in line
    assert run_command(main, [str(run), "--data", str(path)]) == 0

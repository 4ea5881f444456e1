"""All methods: parameter counts against the paper's table, and what is dead from the start."""

import numpy as np
import pytest
from method_checks import SETTINGS, check_full, check_low_rank

from minisl.autograd import ops
from minisl.config import read_config
from minisl.errors import InputError
from minisl.methods import available, build_model, get
from minisl.nn import LlamaConfig

# name: rank, delta, parameters of full, low_rank, sltrain (paper, table 2, in full digits)
SIZES = {
    "60m": (128, 0.03, 58_073_600, 42_770_944, 43_529_832),
    "130m": (256, 0.03, 134_105_856, 93_997_824, 96_545_796),
    "350m": (256, 0.03, 367_969_280, 185_222_144, 194_293_544),
    "1b": (512, 0.03, 1_339_082_752, 609_310_720, 645_547_960),
    "7b": (1024, 0.05, 6_738_415_616, 2_820_935_680, 3_144_735_808),
}


@pytest.mark.parametrize("size", SIZES)
def test_parameter_counts_of_the_paper(size):
    """Counted on a model that has shapes and no memory; and by the formulas of the paper's section 3.3."""
    rank, delta, *expected = SIZES[size]
    config = LlamaConfig.from_dict(read_config(size))
    settings = SETTINGS | {"rank": rank, "delta": delta}
    counts = [build_model(config, m, settings).num_parameters() for m in ("full", "low_rank", "sltrain")]
    assert counts == expected
    h, f, L, V = config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.vocab_size
    base = 2 * V * h + (2 * L + 1) * h
    low_rank, sparse = L * rank * (11 * h + 3 * f), L * (4 * int(delta * h * h) + 3 * int(delta * h * f))
    assert counts == [base + L * (4 * h * h + 3 * h * f), base + low_rank, base + low_rank + sparse]


def test_low_rank(backend):
    check_low_rank()


def test_full(backend):
    check_full()


def test_low_rank_with_b_at_zero_is_dead(backend):
    """LoRA's start without a frozen W: no factor ever gets a gradient. With a proper start all of them do."""
    ids = np.random.default_rng(0).integers(0, 16, (2, 8))
    for dead in (True, False):
        model = build_model(LlamaConfig(8, 12, 2, 2, vocab_size=16), "low_rank", SETTINGS, np.random.default_rng(0), "float64")
        for name, p in model.named_parameters():
            if dead and name.endswith("lora_B"):
                p.data[:] = 0
        ops.cross_entropy(model(ids[:, :-1]), ids[:, 1:]).backward()
        moved = {name for name, p in model.named_parameters() if p.grad.any()}
        assert moved == ({"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} if dead else
                         {name for name, _ in model.named_parameters()})


def test_every_method_is_a_file_that_says_what_it_holds():
    assert {"full", "low_rank", "sltrain"} <= set(available())
    for name in available():
        assert callable(get(name).held)


def test_unknown_method():
    with pytest.raises(InputError, match=r"'lora' is unknown; allowed: .*full, .*low_rank, .*sltrain"):
        get("lora")

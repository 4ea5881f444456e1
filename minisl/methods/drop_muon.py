"""Drop-Muon: Muon on the last blocks only, from one drawn anew each step (Gruntkowska et al. 2025, arXiv 2510.02239).

    s ~ D over the blocks 1 .. L
    blocks s .. L, norm and head       a step of Muon, or of --optimizer
    blocks 1 .. s-1 and embedding      nothing: no step, no gradient, and no change of momentum

As nothing below s asks for a gradient, the backward pass ends at s, and below it the forward pass keeps nothing. With D uniform,
block l moves in l/L of the steps, the embedding in 1/L, and backward through the blocks takes (L+1)/2L of its time.

Beside SLTrain: saves time, not memory: all that Muon keeps is kept, and a step with s = 1 needs every activation.
State: as Muon: out x in weights and as much momentum.
Pitfalls: a block that moves half as often learns less from as many steps: compare at equal time. A tied table is the embedding:
it moves when the embedding does.
Our reading: what a layer is here is ours: a block is one, the embedding belongs to the first. The paper's experiments were
small CNNs at first, and in a later version NanoGPT-124M and ResNet-50 too, with s drawn uniformly, as here; --drop none is
always s = 1, Muon to the last bit.
"""

from minisl.errors import InputError
from minisl.methods import Flag, muon

OPTIONS = (*muon.OPTIONS,
           Flag("drop", "uniform", "how many of the first blocks rest in a step: as drawn, or none", ("uniform", "none")))


def rule(name, like, base, rng_at, drop, **options):
    if not name.startswith("model.layers."):
        raise InputError(f"drop_muon drops blocks of a Llama, and {name} is in none; muon moves matrices of any model")
    return muon.rule(name, like, base, rng_at, **options)


def before_step(model, optimizer, step, steps, rng, drop, **options):
    blocks = model.model.layers
    first = int(rng.integers(len(blocks))) if drop == "uniform" else 0
    model.model.embed_tokens.weight.requires_grad = first == 0
    for l, block in enumerate(blocks):
        for p in block.parameters():
            p.requires_grad = l >= first


def held(out_features, in_features, drop, **options):
    return muon.held(out_features, in_features, **options)

"""Weights of a folder into a model of any method."""

import math

import numpy as np

from minisl.autograd import Tensor
from minisl.errors import InputError
from minisl.hf.factors import PARTS, decompose, factor_shapes, one_number, product, support
from minisl.hf.files import read_weights
from minisl.methods import matrix
from minisl.methods.low_rank import LowRankLinear
from minisl.methods.sltrain import SLLinear
from minisl.methods.sst import SSTLinear
from minisl.nn import Llama

DECOMPOSE = ("random", "largest")
FACTORED = ("sltrain", "sltrain_svd", "low_rank")  # what it is for


def start_from(model, folder, decompose=None, rng=None, alpha=None):
    """Put the weights of a folder into a model on the CPU, built of any method with `read_config(folder)`.

    decompose: "random" keeps the model's support, "largest" takes the positions where |W - s B A| is largest; for matrices that
    are factors here and dense there. rng: a Generator, for methods that draw when they start from a W.
    alpha: of factors that are multiplied out, where no config in the folder says it.
    Returns matrix type -> |W - W'| / |W| (Frobenius, over all layers), for the decomposed ones.
    Raises InputError: a tensor is missing, too many, of a wrong shape, or no starting point for this method. What shapes can tell
    is told before the first weight is read.
    """
    weights = read_weights(folder)
    shapes = {name: p.shape for name, p in Llama(model.config).named_parameters()}
    layers, params = dict(model.named_modules()), dict(model.named_parameters())
    check_names(weights, shapes, folder, model.config.tie_word_embeddings)
    squares = {}
    for name in shapes:
        path = name.removesuffix(".weight")
        if not matrix(name):
            fill(params[name], weights[name])
        elif name not in weights and isinstance(layers[path], SLLinear):
            copy_factors(layers[path], weights, path)
        else:
            W = weights[name] if name in weights else product(weights, path, folder, alpha)
            where = weights.say(name if name in weights else f"{path}.lora_A")
            lost = place(layers[path], W.astype(params["model.embed_tokens.weight"].dtype, copy=False), decompose, rng, where)
            if lost is not None:
                sums = squares.setdefault(matrix(name), [0.0, 0.0])
                sums[0] += lost
                sums[1] += float(np.vdot(W, W))
    return {name: math.sqrt(lost / whole) if whole else 0.0 for name, (lost, whole) in squares.items()}


def check_names(weights, shapes, folder, tied):
    """Raise InputError unless the weights are those of a LLaMA with these shapes, some matrices in factors."""
    known = set()
    for name, shape in shapes.items():
        path = name.removesuffix(".weight")
        if name in weights:
            found = weights.shapes[name]
            known.add(name)
        elif matrix(name) and f"{path}.lora_A" in weights:
            (m, _), (_, n), *_ = factor_shapes(weights, path)
            found = m, n
            name = f"{path}.lora_A"
            known.update(f"{path}.{part}" for part in (*PARTS, "scaling"))
        else:
            raise InputError(f"{folder}: the tensor {name} is missing")
        if found != tuple(shape):
            raise InputError(f"{weights.say(name)} is a matrix of shape {found}, config.json asks for {tuple(shape)}")
    if tied and "lm_head.weight" in weights:  # saved although it is the embedding
        known.add("lm_head.weight")
        if not np.array_equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"]):
            raise InputError(f"{weights.say('lm_head.weight')} is not the embedding, which config.json says it is tied to")
    for name in weights:
        file, its = weights.places[name]
        if name not in known:
            raise InputError(f"{weights.say(name)} is no part of this model")
        if (file.kind(its) == "f") == name.endswith("sparse_index"):
            raise InputError(f"{weights.say(name)} is of type {file.entries[its][0]}, which it cannot be")


def copy_factors(layer, weights, path):
    """SLTrain factors as they are into a layer of the same rank and density."""
    for part in PARTS:
        if weights.shapes[f"{path}.{part}"] != getattr(layer, part).shape:
            raise InputError(f"{weights.say(f'{path}.{part}')} has shape {weights.shapes[f'{path}.{part}']}, the model's "
                             f"--rank and --delta ask for {getattr(layer, part).shape}")
    if hasattr(layer, "scaling") != (f"{path}.scaling" in weights):
        raise InputError(f"{weights.say(f'{path}.lora_A')}: with and without --learned-scale are different models")
    index = support(weights[f"{path}.sparse_index"], layer.shape, weights.say(f"{path}.sparse_index")).index
    layer.sparse_index = index.astype(layer.sparse_index.dtype)
    for part in ("lora_B", "lora_A", "sparse_value"):
        fill(getattr(layer, part), weights[f"{path}.{part}"])
    if hasattr(layer, "scaling"):
        layer.scaling.data[...] = one_number(weights, f"{path}.scaling")


def place(layer, W, choice, rng, where):
    """A dense W (out, in) into a matrix of any method that has a place for it: the layer then computes x W^T.

    Returns |W - W'|^2 where W became factors, else None. Raises InputError where the method cannot start from a W.
    """
    if isinstance(layer, SLLinear | LowRankLinear):
        if choice is None:
            raise InputError(f"{where} is dense, and this method keeps factors; add --decompose random (what the SVD leaves, at "
                             "random positions, as the method draws them) or --decompose largest")
        if not np.isfinite(W).all():
            raise InputError(f"{where} holds numbers that are not finite, so there is no SVD of it")
        scale = float(np.tanh(layer.scaling.data[0])) if hasattr(layer, "scaling") else layer.scale
        index, nnz = np.zeros(0, np.int32), 0
        if isinstance(layer, SLLinear):
            index, nnz = layer.sparse_index, len(layer.sparse_index)
        B, A, index, v = decompose(W, len(layer.lora_A.data), scale * len(layer.lora_A.data),
                                   nnz if choice == "largest" else index)
        fill(layer.lora_B, B)
        fill(layer.lora_A, A)
        if isinstance(layer, SLLinear):
            layer.sparse_index = index.astype(layer.sparse_index.dtype)
            fill(layer.sparse_value, v)
        left = W - layer.to_dense()
        return float(np.vdot(left, left))
    if isinstance(layer, SSTLinear):  # W = U diag(S) V is all of W
        layer.begin_round(W, rng)
    elif hasattr(layer, "weight"):
        dense = layer.weight.data if isinstance(layer.weight, Tensor) else layer.weight
        if hasattr(layer, "to_dense"):  # what is added to the weight is taken off it first
            W = W - (layer.to_dense() - dense)
        if isinstance(layer.weight, Tensor):
            fill(layer.weight, W)
        else:
            layer.weight = W.astype(dense.dtype)
    else:
        raise InputError(f"{where}: a {type(layer).__name__} cannot start from a dense matrix; methods that can: full and all "
                         "with a dense weight, relora, switchlora, sst, and with --decompose sltrain, sltrain_svd, low_rank")


def fill(parameter, array):
    """Put the array's numbers into a parameter, in its dtype."""
    parameter.data = np.array(array, parameter.data.dtype)


def words(errors):
    """What `start_from` returned, in a line."""
    return "|W - W'| / |W| after --decompose: " + ", ".join(f"{name} {error:.3g}" for name, error in errors.items())

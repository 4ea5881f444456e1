"""B, A and S in a folder, under the names of the public SLTrain code, and made from a dense W.

Of a matrix `model.layers.0.mlp.up_proj` (out, in) it keeps, with s = lora_alpha / r or, learned, s = tanh(scaling),

    lora_B (out, r),  lora_A (r, in),  sparse_index (nnz,) flat row-major,  sparse_value (nnz,),  scaling (1,) where it is learned

and beside config.json a splora_config.json with r, lora_alpha and sp_ratio. minisl's names are the same.

From a dense W = U diag(sigma) V^T (`--decompose`), s = alpha/r:

    B = U_r diag(sqrt(sigma_r / s)),   A = diag(sqrt(sigma_r / s)) V_r^T        s B A: the best of rank r, B^T B = A A^T
    v = (W - s B A).flat[I]                                                     I: the support, random or the largest entries
"""

import math
from pathlib import Path

import numpy as np

from minisl.errors import InputError
from minisl.hf.files import inside, read_weights
from minisl.kernels import Support
from minisl.nn.config import read_json

SL_METHODS = ("sltrain", "sltrain_svd")
PARTS = ("lora_B", "lora_A", "sparse_index", "sparse_value")


def sl_settings(folder):
    """What SLTrain factors in a folder decide: rank, delta, learned_scale, and alpha where a config says it; {} for dense
    weights.

    rank and delta are those of the shapes. alpha: of splora_config.json (`lora_alpha`), which the public code writes, or of the
    key "minisl" in config.json. Raises InputError where the matrices disagree.
    """
    weights = read_weights(folder)
    layers = [name.removesuffix(".lora_A") for name in weights if name.endswith(".lora_A")
              and name.removesuffix("lora_A") + "sparse_index" in weights]
    if not layers:
        return {}
    ranks, counts = set(), set()
    for layer in layers:
        (m, r), (_, n), (nnz,), _ = factor_shapes(weights, layer)
        ranks.add(r)
        counts.add((nnz, m * n))
    delta, learned = density(counts, written(folder).get("delta")), {f"{layer}.scaling" in weights for layer in layers}
    if len(ranks) > 1 or delta is None or len(learned) > 1:
        raise InputError(f"{folder}: the matrices differ in rank, density or having a learned scale; one of each for "
                         "all of them is understood")
    found = {"rank": ranks.pop(), "delta": delta, "learned_scale": learned.pop()}
    alpha = alpha_of(folder)
    return found if alpha is None else found | {"alpha": alpha}


def alpha_of(folder):
    """alpha as a config in the folder has it, or None. Raises InputError unless it is a positive number."""
    alpha = written(folder).get("alpha")
    if alpha is not None and (type(alpha) not in (int, float) or not 0 < alpha < math.inf):
        raise InputError(f"{folder}: alpha is {alpha!r}; it must be a positive number")
    return alpha if alpha is None else float(alpha)


def written(folder):
    """alpha and delta as a config in the folder has them, unchecked."""
    if (Path(folder) / "splora_config.json").exists():
        public = read_json(inside(folder, "splora_config.json"))
        return {"alpha": public.get("lora_alpha"), "delta": public.get("sp_ratio")}
    ours = read_json(inside(folder, "config.json")).get("minisl")
    options = ours.get("options") if isinstance(ours, dict) else None
    return options if isinstance(options, dict) else {}


def density(counts, wish=None):
    """The delta that gives all supports their sizes, int(delta out in) for each (nnz, out in): `wish` if it does, else the one
    with the fewest decimals; None if there is none."""
    middle = (max(nnz / size for nnz, size in counts) + min((nnz + 1) / size for nnz, size in counts)) / 2
    for delta in (wish, *(round(middle, k) for k in range(1, 17)), middle):
        if isinstance(delta, float) and 0 < delta < 1 and all(int(delta * size) == nnz for nnz, size in counts):
            return delta
    return None


def factor_shapes(weights, layer):
    """Shapes of B, A, index and values. Raises InputError unless they fit each other."""
    names = [f"{layer}.{part}" for part in PARTS]
    for name in names:
        if name not in weights:
            raise InputError(f"{weights.say(f'{layer}.lora_A')}: without a {name} beside it")
    shapes = B, A, index, values = [weights.shapes[name] for name in names]
    if [len(s) for s in shapes] != [2, 2, 1, 1] or B[1] != A[0] or index != values or not (B[0] and A[1] and B[1]):
        raise InputError(f"{weights.say(names[1])}: the factors' shapes {B}, {A}, {index}, {values} (B, A, index, values) "
                         "do not fit each other")
    return shapes


def adopt(settings, given):
    """Take over what the SLTrain factors in `settings.from_hf` decide. given: names of the flags that were typed.

    settings: with the attributes from_hf, method, rank, delta, alpha, learned_scale; changed in place, for the methods that keep
    B, A and S. Raises InputError where a typed flag says something else, or nothing says alpha: so `start_from` may take
    settings.alpha for that of the factors where no config says it.
    """
    keeps = settings.method in SL_METHODS
    found = sl_settings(settings.from_hf) if keeps else {}
    without = "alpha" not in found if found else not keeps and unscaled(settings.from_hf)
    if without and "alpha" not in given:
        raise InputError(f"--from-hf {settings.from_hf}: holds factors B, A and S, and no config there says alpha; give --alpha")
    for name, value in found.items():
        if name in given and getattr(settings, name) != value:
            raise InputError(f"--{name.replace('_', '-')} {getattr(settings, name)}: the factors in {settings.from_hf} "
                             f"have {value}")
        setattr(settings, name, value)


def unscaled(folder):
    """Does a folder hold factors whose scale is neither learned nor follows from an alpha that is written there?"""
    weights = read_weights(folder)
    layers = [name.removesuffix(".lora_A") for name in weights if name.endswith(".lora_A")]
    return any(f"{layer}.scaling" not in weights for layer in layers) and alpha_of(folder) is None


def product(weights, path, folder, alpha=None):
    """W = s B A + S (out, in) of a checkpoint's factors. alpha: where no config in the folder says it."""
    B, A, index, v = (weights[f"{path}.{part}"] for part in PARTS)
    if f"{path}.scaling" in weights:
        scale = np.tanh(one_number(weights, f"{path}.scaling"))
    else:
        alpha = alpha_of(folder) or alpha
        if alpha is None:
            raise InputError(f"{folder}: holds factors B, A and S, and no config there says alpha, without which there is no W")
        scale = alpha / len(A)
    W = scale * B @ A
    np.add.at(W.reshape(-1), support(index, W.shape, weights.say(f"{path}.sparse_index")).index, v)
    return W


def one_number(weights, name):
    """A tensor's only number. Raises InputError where it has more."""
    if math.prod(weights.shapes[name]) != 1:
        raise InputError(f"{weights.say(name)} has shape {weights.shapes[name]}; a learned scale is one number")
    return float(weights[name].reshape(-1)[0])


def support(index, shape, where):
    """A `Support`; positions that cannot be are an InputError that says where."""
    try:
        return Support(index, shape)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {error}") from None


def decompose(W, rank, alpha, support):
    """W (out, in) as (alpha/r) B A + S: B (out, r), A (r, in), flat positions and values (nnz,) of S.

    support: the positions, or how many: the largest entries of W - (alpha/r) B A then. Raises InputError unless
    1 <= rank <= min(out, in) and alpha > 0.
    """
    if not 1 <= rank <= min(W.shape) or not alpha > 0:
        raise InputError(f"rank is {rank} and alpha {alpha}; a {W.shape[0]} x {W.shape[1]} matrix splits into factors "
                         f"of rank 1 to {min(W.shape)}, with alpha above 0")
    U, sigma, Vt = np.linalg.svd(W, full_matrices=False)
    scale = alpha / rank
    root = np.sqrt(sigma[:rank] / scale).astype(W.dtype)
    B, A = U[:, :rank] * root, root[:, None] * Vt[:rank]
    residual = (W - scale * B @ A).reshape(-1)
    if isinstance(support, int):
        support = np.sort(np.argpartition(-np.abs(residual), min(support, residual.size - 1))[:support])
    return B, A, support, residual[support]

"""`python -m minisl.export RUN --to hf DIR`: a trained model as a folder that Hugging Face's transformers loads.

    AutoModelForCausalLM.from_pretrained(DIR), AutoTokenizer.from_pretrained(DIR)

Neither transformers nor PyTorch is needed to write it.
"""

import json
import math
import sys

from minisl import checkpoint
from minisl.autograd import Tensor
from minisl.backend import to_numpy
from minisl.command import Parser, run_command
from minisl.errors import InputError
from minisl.files import new_folder
from minisl.hf.factors import PARTS, density
from minisl.hf.tensorfile import write
from minisl.methods import matrix
from minisl.methods.sltrain import SLLinear
from minisl.nn import Llama

DTYPES = ("float64", "float32", "float16", "bfloat16")


def export(model, tokenizer, folder, dtype=None, keep_factors=False):
    """Write config.json, model.safetensors, tokenizer.json and tokenizer_config.json to a folder that is new or empty.

    dtype: of DTYPES, the model's own if left out. keep_factors: B, A and S of SLTrain layers under the names of the public code
    instead of the dense W, with its splora_config.json; transformers does not load these, `--from-hf` does.
    Returns the number of bytes of the weights. The folder appears when all is in it, or not at all. Raises InputError: it is not
    empty, a layer has no dense W, or no factors; a number is too large for dtype.
    """
    own = str(model.model.embed_tokens.weight.dtype)
    tensors = factors(model, dtype or own) if keep_factors else {}
    tensors |= dense(model, dtype or own, tensors)
    config = {**model.config.to_dict(), "torch_dtype": dtype or own, "bos_token_id": tokenizer.end, "eos_token_id": tokenizer.end}
    with new_folder(folder, "--to hf") as draft:
        if keep_factors:
            public, config["minisl"] = sl_config(model, own)
            write_json(draft / "splora_config.json", public)
        write_json(draft / "config.json", config)
        text, settings = for_transformers(tokenizer, model.config.max_position_embeddings)
        write_json(draft / "tokenizer.json", text)
        write_json(draft / "tokenizer_config.json", settings)
        write(draft / "model.safetensors", tensors, {"format": "pt"})  # transformers asks for the format
        return (draft / "model.safetensors").stat().st_size


def dense(model, dtype, done):
    """name -> (dtype, shape, function for the array) of the dense LLaMA, without the matrices whose factors are `done`."""
    layers, tensors = dict(model.named_modules()), {}
    for name, p in Llama(model.config).named_parameters():
        path = name.removesuffix(".weight")
        if f"{path}.lora_A" not in done:
            layer = layers[path]
            if not hasattr(layer, "to_dense") and not hasattr(layer, "weight"):
                raise InputError(f"{name}: a {type(layer).__name__} is no linear function of its input, so there is no dense W "
                                 "to export")
            tensors[name] = dtype, p.shape, lambda layer=layer: array_of(layer)
    return tensors


def array_of(layer):
    """W (out, in), or whatever else a layer keeps as its weight."""
    if hasattr(layer, "to_dense"):
        return to_numpy(layer.to_dense())
    return data_of(layer.weight)


def data_of(array):
    """A tensor's or an array's numbers, as a NumPy array."""
    return to_numpy(array.data if isinstance(array, Tensor) else array)


def factors(model, dtype):
    """name -> (dtype, shape, function for the array) of all SLTrain layers, positions in 64 bits as the public code has them."""
    tensors = {}
    for path, layer in model.named_modules():
        if isinstance(layer, SLLinear):
            for part in (*PARTS, *["scaling"] * hasattr(layer, "scaling")):
                array = data_of(getattr(layer, part))
                tensors[f"{path}.{part}"] = "int64" if part == "sparse_index" else dtype, array.shape, lambda array=array: array
    if not tensors:
        raise InputError("--keep-factors: this model has no factors B, A and S; methods that have: sltrain, sltrain_svd")
    return tensors


def sl_config(model, dtype):
    """(what the public code keeps in splora_config.json, minisl's key in config.json)"""
    layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, SLLinear)}
    one = next(iter(layers.values()))
    rank, learned = len(one.lora_A.data), hasattr(one, "scaling")
    delta = density({(len(layer.sparse_index), math.prod(layer.shape)) for layer in layers.values()})
    alpha = round(one.scale * rank, 12)
    options = {"rank": rank, "delta": delta, "alpha": alpha, "learned_scale": learned, "algorithm": "auto"}
    public = {"r": rank, "lora_alpha": alpha, "lora_dropout": 0.0, "sp_ratio": delta, "trainable_scaling": learned,
              "target_modules": sorted({matrix(path) for path in layers})}
    return public, {"method": "sltrain", "options": options, "dtype": dtype}


def for_transformers(tokenizer, length):
    """(tokenizer.json, tokenizer_config.json) with which AutoTokenizer gives the ids that `Tokenizer.encode` does.

    No marks are added around a text, and one that is spelled out in it is text.
    """
    end = tokenizer.inner.id_to_token(tokenizer.end)
    return {**json.loads(tokenizer.to_json()), "post_processor": None}, {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": end, "eos_token": end, "model_max_length": length,
        "clean_up_tokenization_spaces": False, "split_special_tokens": True}


def write_json(path, value):
    """A value as indented JSON."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")


def main(argv):
    parser = Parser(prog="python -m minisl.export", description="Write a trained model in a form that others load.")
    parser.add_argument("run", help="a folder that minisl.train wrote, or one of its checkpoints")
    parser.add_argument("--to", nargs=2, required=True, metavar=("FORMAT", "DIR"), help="hf DIR: Hugging Face, in a new folder")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (left out: as trained)")
    parser.add_argument("--keep-factors", action="store_true",
                        help="B, A and S as in the public SLTrain code, not the dense W; transformers does not load it")
    args = parser.parse_args(argv)
    form, folder = args.to
    if form != "hf":
        raise InputError(f"--to {form}: unknown; allowed: hf DIR")
    if not folder:
        raise InputError("--to hf: the folder's name must not be empty")
    model, tokenizer = checkpoint.load_model(args.run), checkpoint.load_tokenizer_of(args.run)
    size = export(model, tokenizer, folder, args.dtype, args.keep_factors)
    loaded = "minisl.train --from-hf" if args.keep_factors else "transformers.AutoModelForCausalLM.from_pretrained"
    print(f"{folder}: {size / 1e6:,.1f} MB of weights; load it with {loaded}")


if __name__ == "__main__":
    sys.exit(run_command(main))

"""Weights that travel: a folder with a Hugging Face LLaMA, or with the factors of the public SLTrain code, into a model of any
method (`python -m minisl.train --from-hf DIR`). The way back is `python -m minisl.export`. docs/hf.md

    tensorfile.py    the safetensors format, one tensor at a time
    files.py         a folder: config.json, one file or shards; no pickle
    factors.py       B, A and S: the public names, and from a dense W
    place.py         into a model
"""

from minisl.hf.factors import adopt, decompose, sl_settings
from minisl.hf.files import read_config, read_weights, tokenizer_file
from minisl.hf.place import DECOMPOSE, FACTORED, start_from, words

__all__ = ["DECOMPOSE", "FACTORED", "adopt", "decompose", "read_config", "read_weights", "sl_settings", "start_from",
           "tokenizer_file", "words"]

"""Documents to one long array of ids, in memory or, once it is large, mapped from a file."""

import os
import tempfile

import numpy as np

IN_MEMORY = 1 << 26  # characters of text whose ids are kept in memory


def tokenize(tokenizer, documents, folder=None, in_memory=IN_MEMORY):
    """One-dimensional array of ids, `tokenizer.end` before each document.

    Text of more than `in_memory` characters becomes a memory-mapped file in `folder` that vanishes with the array.
    """
    if sum(map(len, documents)) <= in_memory:
        return tokenizer.encode_documents(documents)
    with tempfile.TemporaryFile(dir=folder) as file:
        for ids in tokenizer.marked(documents):
            file.write(ids.tobytes())
        file.flush()
        return np.memmap(file, ids.dtype, "r", shape=os.fstat(file.fileno()).st_size // ids.itemsize)

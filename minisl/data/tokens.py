"""Documents to one long array of ids, in memory or, once it is large, mapped from a file."""

import os
import tempfile

import numpy as np

IN_MEMORY = 1 << 26  # characters of text whose ids are kept in memory
AT_ONCE = 1 << 24  # characters encoded at a time


def tokenize(tokenizer, documents, folder=None, in_memory=IN_MEMORY):
    """One-dimensional array of ids, `tokenizer.end` before each document.

    Text of more than `in_memory` characters becomes a memory-mapped file in `folder` that vanishes with the array.
    """
    if sum(map(len, documents)) <= in_memory:
        return tokenizer.encode_documents(documents)
    with tempfile.TemporaryFile(dir=folder) as file:
        for batch in batched(documents, AT_ONCE):
            ids = tokenizer.encode_documents(batch)
            file.write(ids.tobytes())
        file.flush()
        return np.memmap(file, ids.dtype, "r", shape=os.fstat(file.fileno()).st_size // ids.itemsize)


def batched(documents, characters):
    """Lists of documents that hold about so many characters."""
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch

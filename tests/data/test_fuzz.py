"""Malformed data files and tokenizers: one line, no traceback, no hang. MINISL_FUZZ=full takes 2,000 of them."""

import gzip
import io
import json
import os
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from minisl.data import make_tokenizer, open_data
from minisl.data.shards import prepare
from minisl.errors import InputError

sys.path.insert(0, str(Path(__file__).parent))
from stream_cases import DOCUMENTS, lines

hypothesis, st = pytest.importorskip("hypothesis"), pytest.importorskip("hypothesis.strategies")
given = hypothesis.given
EXAMPLES = 2000 if os.environ.get("MINISL_FUZZ") == "full" else 100
fuzz = hypothesis.settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=EXAMPLES < 1000)


@cache
def byte_level():
    return make_tokenizer("bytes", [], 257)


@cache
def good():
    """A sound file of each kind, by its ending; and a folder of shards as name -> content."""
    raw = lines(DOCUMENTS[:60])
    found = {".jsonl": raw, ".jsonl.gz": gzip.compress(raw), ".txt": b"some text\n" * 200,
             "tokenizer.json": byte_level().to_json().encode()}
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
        import zstandard

        file = io.BytesIO()
        pq.write_table(pa.table({"text": DOCUMENTS[:60]}), file, row_group_size=25)
        found |= {".parquet": file.getvalue(), ".jsonl.zst": zstandard.ZstdCompressor().compress(raw)}
    except ImportError:
        pass
    with TemporaryDirectory() as folder:
        (Path(folder) / "a.jsonl").write_bytes(raw)
        prepare([f"{folder}/a.jsonl"], f"{folder}/shards", "bytes", 257, 1000)
        shards = {path.name: path.read_bytes() for path in (Path(folder) / "shards").iterdir()}
    return found, shards


KEYS = st.sampled_from(["text", "format", "shards", "a"])
JSON = st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner))


@st.composite
def damaged(draw, content):
    """The content, cut, with bytes changed, put in or doubled; or something else altogether."""
    kind = draw(st.sampled_from(["cut", "flip", "insert", "double", "other", "json"]))
    at = draw(st.integers(0, max(0, len(content) - 1)))
    if kind == "cut":
        return content[:at]
    if kind == "flip":
        changed = bytearray(content)
        for place in draw(st.lists(st.integers(0, max(0, len(content) - 1)), min_size=1, max_size=4)):
            changed[place] = draw(st.integers(0, 255))
        return bytes(changed)
    if kind == "insert":
        return content[:at] + draw(st.binary(max_size=40)) + content[at:]
    if kind == "double":
        return content + content[at:]
    if kind == "json":
        return "".join(json.dumps(value) + "\n" for value in draw(st.lists(JSON, max_size=30))).encode()
    return draw(st.binary(max_size=200))


def survive(sources, tokenizer="bytes"):
    """Opened and read, or refused in one line."""
    try:
        with open_data(sources, tokenizer, 257, batch_size=3, seq_len=20) as data:
            for k in range(100):
                inputs, labels = data.batches(k)
                assert 0 <= inputs.min() <= inputs.max() < 257
                assert labels.max() < 257
            list(data.validation())
    except InputError as error:
        if not 0 < len(str(error)) < 2000:
            raise ValueError("no line to show") from error


@fuzz
@given(st.data())
def test_malformed_files(data):
    found, _ = good()
    name = data.draw(st.sampled_from(sorted(found)))
    with TemporaryDirectory() as folder:
        path = Path(folder) / (name if name == "tokenizer.json" else "a" + name)
        path.write_bytes(data.draw(damaged(found[name])))
        if name == "tokenizer.json":
            (Path(folder) / "a.jsonl").write_bytes(found[".jsonl"])
            survive([f"{folder}/a.jsonl"], str(path))
        else:
            survive([str(path)])
        assert len(list(Path(folder).iterdir())) <= 2


@fuzz
@given(st.data())
def test_malformed_shards(data):
    _, shards = good()
    name = data.draw(st.sampled_from(sorted(shards)))
    with TemporaryDirectory() as folder:
        for each, content in shards.items():
            (Path(folder) / each).write_bytes(data.draw(damaged(content)) if each == name else content)
        survive([folder])
        assert len(list(Path(folder).iterdir())) == len(shards)

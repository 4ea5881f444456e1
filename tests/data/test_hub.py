"""Datasets of the hub: `--data c4` itself, through `datasets`, from a hub on loopback; and where there is none."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import minisl
from minisl.data import hub
from minisl.errors import InputError

sys.path.insert(0, str(Path(__file__).parent))
import stream_cases
from stream_cases import DOCUMENTS, lines

CARD = b"""---
configs:
- config_name: en
  data_files:
  - split: train
    path: en/c4-train.*.json.gz
  - split: validation
    path: en/c4-validation.*.json.gz
---
"""
HELD_OUT = [f"held out {n}" for n in range(30)]
FILES = {"README.md": CARD, "en/c4-validation.00000-of-00001.json.gz": gzip.compress(lines(HELD_OUT, timestamp="t", url="u"))} | {
    f"en/c4-train.{n:05}-of-00003.json.gz": gzip.compress(lines(DOCUMENTS[200 * n : 200 * (n + 1)], timestamp="t", url="u"))
    for n in range(3)}
PROGRAM = """
import json, sys
import numpy as np
from minisl.command import run_command
from minisl.data import open_data

def main(argv):
    source, workers, fields = argv[0], int(argv[1]), argv[2:]
    sizes = {"batch_size": 8, "seq_len": 200, "seed": 42, "protocol": "padded", "validation_documents": 12}
    with open_data([source], "bytes", 257, workers=workers, **sizes) as data:
        found = [data.batches(k) for k in range(75)]
        states = [data.batches.state()]
        decoded = [data.tokenizer.decode(row) for inputs, _ in found for row in inputs]
        held_out = [data.tokenizer.decode(row) for inputs, _ in data.validation() for row in inputs]
        more = [data.batches(k) for k in range(75, 90)]
        data.batches.restore(json.loads(json.dumps(states[0])))
        again = [data.batches(k) for k in range(75, 90)]
        same = all(np.array_equal(a, b) for one, two in zip(more, again) for a, b in zip(one, two))
    print(json.dumps([data.words, decoded, held_out, same, states[0]["epoch"]]))

sys.exit(run_command(main))
"""


def run(tmp_path, *argv, before="", **env):
    return subprocess.run([sys.executable, "-W", "ignore", "-c", before + PROGRAM, *argv], cwd=Path(minisl.__file__).parents[1],
                          text=True, capture_output=True, timeout=600, env={**os.environ, "HF_HOME": str(tmp_path / "hf"), **env})


@pytest.mark.parametrize("workers", ["0", "1"])
def test_c4_streams_each_document_once_and_validates_on_its_own_split(tmp_path, workers):
    pytest.importorskip("datasets")
    with stream_cases.hub("allenai/c4", FILES) as server:
        done = run(tmp_path, "c4", workers, HF_ENDPOINT=server.url)
    assert done.returncode == 0, done.stderr
    words, decoded, held_out, same, epoch = json.loads(done.stdout)
    assert words == "c4: a stream of 3 files, 134 held out (122 bytes)"
    assert sorted(decoded) == sorted(DOCUMENTS)
    assert decoded[:100] != DOCUMENTS[:100]
    assert held_out == HELD_OUT[:12]
    assert same
    assert epoch in (0, 1)
    assert not any("POST" in request for request in server.asked)
    assert done.stderr == ""


@pytest.mark.parametrize(("source", "files", "said"), [
    ("hf:allenai/c4:xy", FILES, "BuilderConfig 'xy' not found"),
    ("hf:allenai/other", FILES, "404"),
    ("c4", {name: content for name, content in FILES.items() if "train" not in name}, "train"),
    ("c4", {**FILES, "en/c4-train.00001-of-00003.json.gz": b"\x1f\x8b\x08\0 damaged"}, "shard 1 cannot be read on"),
    ("c4", {**FILES, "en/c4-train.00001-of-00003.json.gz": gzip.compress(b'{"Text": "a"}\n' * 99)}, "shard 1 cannot be read on"),
])
def test_what_the_hub_does_not_have_is_one_line(tmp_path, source, files, said):
    pytest.importorskip("datasets")
    with stream_cases.hub("allenai/c4", files) as server:
        done = run(tmp_path, source, "0", HF_ENDPOINT=server.url)
    assert done.returncode in (1, 2), done.stderr
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: --data {source}: ")
    assert said in line


def test_no_network_is_one_line_within_seconds(tmp_path):
    pytest.importorskip("datasets")
    before = "import atexit, time; slept = []; time.sleep = slept.append; atexit.register(lambda: print(sum(slept)))"
    done = run(tmp_path, "c4", "0", before=before, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 2
    assert done.stderr == ("error: --data c4: http://127.0.0.1:9 cannot be reached ([Errno 111] Connection refused); it needs a "
                           "network, or give local files: .jsonl, .jsonl.gz, .jsonl.zst, .json.gz, .parquet\n")
    assert float(done.stdout) < 30


@pytest.mark.parametrize(("source", "expected"), [
    ("c4", ("allenai/c4", "en")), ("hf:a/b", ("a/b", None)), ("hf:wikitext:x-1", ("wikitext", "x-1")), ("c4.jsonl", None)])
def test_names(source, expected):
    assert hub.parse_name(source) == expected


@pytest.mark.parametrize("source", ["hf:", "hf:/etc", "hf:../x", "hf:a/b/c", "hf:a:", "hf:a:b:c", "hf:a b"])
def test_what_is_no_name(source):
    with pytest.raises(InputError, match="not a dataset's name"):
        hub.parse_name(source)

"""Streams of documents: every document once an epoch, none that is held out, exact labels, and the same batches however one gets
to them: resumed, with workers, shared between processes."""

import gc
import gzip
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from mutation import mutant_tests

import minisl
from minisl.data import batches, dataset, files, load_corpus, make_tokenizer, open_data, sources, tokenize, workers
from minisl.data.stream import Shuffled, Stream
from minisl.errors import InputError

sys.path.insert(0, str(Path(__file__).parent))
from stream_cases import DOCUMENTS, equal, folder, lines

ROOT = Path(minisl.__file__).parents[1]
SIZES = {"batch_size": 6, "seq_len": 40, "seed": 5, "validation_documents": 12}
HELD_OUT = [f"document {n}: " for n in (19, 39, 59, 219, 239, 259, 369, 389, 409, 429, 449)]


@cache
def byte_level():
    return make_tokenizer("bytes", [], 257)


def opened(protocol="packed", **more):
    return open_data([str(folder())], byte_level(), 257, protocol=protocol, **{**SIZES, **more})


def words(data, count, first=0):
    """All (inputs, labels) of `count` batches as two rows of tokens."""
    pairs = [data.batches(k) for k in range(first, first + count)]
    return [np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1)]


def texts(tokens):
    """The documents between the marks, the first and the last left out where they are cut."""
    pieces = np.split(tokens, np.flatnonzero(tokens == byte_level().end))
    assert not len(pieces[0])
    return [byte_level().decode(piece[1:]) for piece in pieces[1:-1]]


def training():
    return [text for text in DOCUMENTS if not text.startswith(tuple(HELD_OUT))]


# What is in a batch


def check_packed():
    """An epoch is each training document once; the label of a token is the token after it, also across sequences."""
    data = opened()
    inputs, labels = words(data, 430)
    assert np.array_equal(inputs[1:], labels[:-1])
    found, n = texts(inputs), len(training())
    assert Counter(found[:n]) == Counter(found[n : 2 * n]) == Counter(training())
    assert found[:n] != found[n : 2 * n]
    assert data.batches.epoch >= 2
    assert data.batches(430)[0].shape == (6, 40)

    def read(shard, skip):
        yield from ["a" * 9] * 640

    one = Stream(sources.Source("640 tokens a chunk", [0], read, []), byte_level(), 4, 16, 0)
    assert all(len(label) == 16 for k in range(30) for label in one(k)[1]), "where the chunk ends with the sequence"


def check_padded():
    """A sequence is one document: mark, text, mark, cut or filled up. Labels of what is filled up are ignored."""
    data, end = opened("padded"), byte_level().end
    found, n = [], len(training())
    for k in range(2 * n // 6):
        for inputs, labels in zip(*data.batches(k)):
            text = DOCUMENTS[int(re.match(r"document (\d+):", byte_level().decode(inputs[1:]))[1])]
            ids = [end, *byte_level().encode(text), end][:41]
            assert inputs[: len(ids) - 1].tolist() == ids[:-1]
            assert labels.tolist() == [*ids[1:], *[-100] * (41 - len(ids))]
            assert inputs.min() >= 0
            found.append(text)
    assert Counter(found[:n]) == Counter(training())
    assert len(set(found[n:])) == len(found[n:])
    assert found[: len(found) - n] != found[n:]


@pytest.mark.parametrize(("text", "inputs", "labels"), [
    ("ab", [0, 1, 2, 0], [1, 2, 0, -100]), ("abc", [0, 1, 2, 3], [1, 2, 3, 0]), ("abcd", [0, 1, 2, 3], [1, 2, 3, 4]),
    ("abcdefg", [0, 1, 2, 3], [1, 2, 3, 4]), ("", [0, 0, 0, 0], [0, -100, -100, -100])])
def test_padded_by_hand(text, inputs, labels):
    row = batches.padded(np.array([ord(c) - ord("a") + 1 for c in text]), 0, 4)
    found = batches.inputs_and_labels((row[:-1], row[1:]), 0)
    assert [side.tolist() for side in found] == [inputs, labels]


def check_hold_out():
    """Every 20th document of each file, as many of each; nothing else; and no copy of one is trained on."""
    for protocol in ("packed", "padded"):
        data = opened(protocol)
        held_out = [text for text in DOCUMENTS if text.startswith(tuple(HELD_OUT))]
        pairs = list(data.validation())
        inputs, labels = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
        assert max(len(pair[0]) for pair in pairs) == 6
        if protocol == "packed":
            tokens = [i for text in held_out for i in (byte_level().end, *byte_level().encode(text))]
            assert labels[labels >= 0].tolist() == tokens[1:]
            assert data.validation_bytes == sum(len(text.encode()) for text in held_out)
        else:
            ids = [[*byte_level().encode(text), byte_level().end][:40] for text in held_out]
            assert [row[row >= 0].tolist() for row in labels] == ids
            assert data.validation_bytes == sum(i != byte_level().end for row in ids for i in row)
            assert inputs.min() >= 0


def test_copies_of_held_out_documents_are_not_trained_on(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines([*DOCUMENTS[:40], DOCUMENTS[19], DOCUMENTS[39], *DOCUMENTS[40:60]]))
    data = open_data([str(tmp_path / "a.jsonl")], byte_level(), 257, **{**SIZES, "validation_documents": 2})
    assert not {DOCUMENTS[19], DOCUMENTS[39]} & set(texts(words(data, 60)[0]))


def test_many_files_of_one_document_are_held_out_from_too(tmp_path):
    for n in range(40):
        (tmp_path / f"{n:02}.jsonl").write_bytes(lines(DOCUMENTS[n : n + 1]))
    source = sources.open_source([str(tmp_path)])
    assert source.hold_out() == [DOCUMENTS[19], DOCUMENTS[39]]


def test_text_in_memory_gives_the_batches_it_always_gave(tmp_path):
    for n in range(45):
        (tmp_path / f"{n:02}.txt").write_text(DOCUMENTS[n])
    corpus = load_corpus([str(tmp_path)])
    tokens, held_out = (tokenize(byte_level(), documents) for documents in (corpus.train, corpus.validation))
    before = batches.Batches(tokens, 6, 40, 5)
    sizes = {"batch_size": 6, "seq_len": 40, "seed": 5}
    data = open_data([str(tmp_path)], byte_level(), 257, **sizes)
    parts = [open_data([str(tmp_path)], byte_level(), 257, share=(rank, 4), **sizes) for rank in range(4)]
    for k in (0, 1, 30, 7):
        assert equal(data.batches(k), before(k))
        assert equal([np.concatenate([part.batches(k)[side] for part in parts]) for side in (0, 1)], before(k))
        assert data.batches.state() == {"next": k + 1}
    assert all(equal(*both) for both in zip(data.validation(), batches.validation_batches(held_out, 6, 40), strict=True))
    assert (data.sha256, data.name) == (corpus.sha256, str(tmp_path))
    assert data.validation_bytes == sum(len(text.encode()) for text in corpus.validation)


def test_padded_text_in_memory(tmp_path):
    for n in range(45):
        (tmp_path / f"{n:02}.txt").write_text(DOCUMENTS[n])
    data = open_data([str(tmp_path)], byte_level(), 257, batch_size=5, seq_len=40, seed=5, protocol="padded")
    rows = [(*i.tolist(), *l.tolist()) for k in range(9) for i, l in zip(*data.batches(k))][:43]
    ids = [[0, *byte_level().encode(text), 0] for n, text in enumerate(DOCUMENTS[:45]) if n not in (19, 39)]
    assert sorted(rows) == sorted((*i[:-1], *[0] * 41)[:40] + (*i[1:41], *[-100] * 41)[:40] for i in ids)
    assert byte_level().end == 0


# Where it goes on


def check_resume():
    """From the state after any batch, also within a document and in the buffer's last documents, by another number of workers or
    processes."""
    for protocol, count in (("packed", 225), ("padded", 120)):  # past the end of an epoch
        data = opened(protocol)
        states, expected = [], []
        for k in range(count):
            states.append(json.loads(json.dumps(data.batches.state())))
            expected.append(data.batches(k))
        assert states[0]["next"] == 0
        assert states[-1]["epoch"] == 1
        other = opened(protocol)
        for k in (0, 1, 7, 50, 97, 98, 99, 101, count - 20, count - 5):
            other.batches.restore(states[k])
            assert other.batches.state() == states[k]
            for n in range(k, min(k + 4, count)):
                assert equal(other.batches(n), expected[n]), (protocol, k, n)
            assert other.batches.state()["next"] == min(k + 4, count)
        parts = [opened(protocol, share=(rank, 4)) for rank in range(4)]
        for part in parts:
            part.batches.restore(states[50])
        for n in range(50, 60):
            pairs = [part.batches(n) for part in parts]
            assert [len(pair[0]) for pair in pairs] == [2, 2, 1, 1]
            assert equal([np.concatenate([pair[side] for pair in pairs]) for side in (0, 1)], expected[n])
        assert len({json.dumps(part.batches.state()) for part in parts}) == 1


def check_small_buffer():
    """Where the buffer is smaller than the data: every document once, and the state leads back to the same ones."""
    source = sources.open_source([str(folder())])
    shuffled = Shuffled(source, 3, size=50)
    states, found = [], []
    for _ in range(1500):
        states.append(shuffled.state())
        found.append(next(shuffled))
    for epoch in (0, 1):
        assert Counter(found[600 * epoch : 600 * (epoch + 1)]) == Counter(DOCUMENTS)
    ranks = np.array([DOCUMENTS.index(text) for text in found[:600]])
    assert 20 < np.abs(np.diff(ranks)).mean()  # neighbours are far apart
    for n in (0, 1, 49, 300, 549, 551, 598, 599, 600, 601, 1111):
        again = Shuffled(source, 3, size=50, state=json.loads(json.dumps(states[n])))
        assert states[n]["mark"][0] <= min(states[n]["buffer"], default=600)
        assert [next(again) for _ in range(300)] == found[n : n + 300], n
    assert states[400]["mark"][0] > 0  # not from the start of the epoch
    assert found[:600] != found[600:1200]
    one_file = Shuffled(sources.open_source([str(folder() / "a.jsonl")]), 3, size=50)
    epochs = [[next(one_file) for _ in range(200)] for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert epochs[0] != epochs[1]


def test_seeds_differ():
    assert not equal(opened().batches(0), opened(seed=6).batches(0))


def test_batches_may_be_left_out_but_not_asked_for_twice():
    one, other = opened(), opened()
    expected = [one.batches(k) for k in range(9)]
    assert equal(other.batches(8), expected[8])
    with pytest.raises(ValueError, match="batch 8 of a stream is gone"):
        other.batches(8)


def test_state_is_small():
    data = opened()
    data.batches(70)
    assert len(json.dumps(data.batches.state())) < 8000


@pytest.mark.parametrize("change", [
    {"source": "x", "names": "x"}, {"source": "x", "split": "x"}, {"source": "x", "names": None},
    {"epoch": -1}, {"mark": [0, [0]]}, {"mark": 3}, {"buffer": ["a"]}, {"skip": None}, {"read": 10**6}])
def test_states_of_other_data_are_refused(change):
    data = opened()
    state = data.batches.state()
    with pytest.raises(InputError, match=r"--data .*(not what this run|damaged|fewer documents)"):
        data.batches.restore({**state, **change}) or data.batches(0)


# Processes that tokenise


def running(pids):
    """Those that have not ended."""
    found = []
    for pid in pids:
        with suppress(OSError):  # it is gone
            found += [pid] * (") Z " not in Path(f"/proc/{pid}/stat").read_text())
    return found


def threads():
    return [t for t in threading.enumerate() if t.name == "minisl-data"]


def check_workers():
    """The same batches with 0, 1 and 2 processes, and a resume from one to another; nothing runs after close."""
    before = threads()
    for protocol in ("packed", "padded"):
        data = opened(protocol)
        expected = [data.batches(k) for k in range(75)]
        with opened(protocol, workers=2) as other:
            for k in range(40):
                assert equal(other.batches(k), expected[k]), k
            pids = [w.pid for w in other.batches.feed.workers]
            state = other.batches.state()
            other.close()
            assert not running(pids)
            assert threads() == before
            assert equal(other.batches(40), expected[40]), "it goes on after close"
            pids = [w.pid for w in other.batches.feed.workers]
        assert not running(pids)
        with opened(protocol, workers=1, share=(1, 2)) as third:
            third.batches.restore(state)
            for k in range(40, 75):
                assert equal(third.batches(k), [side[3:] for side in expected[k]]), k


def test_tokenised_no_further_ahead_than_the_queue(monkeypatch):
    taken, at_rest = [], threading.Event()

    class Queue(queue.Queue):
        def put(self, *args, **more):
            try:
                super().put(*args, **more)
            except queue.Full:
                at_rest.set()
                raise

    def chunks():
        for n in range(1000):
            taken.append(n)
            yield n, ["text"]
        at_rest.set()

    monkeypatch.setattr(workers.queue, "Queue", Queue)
    pool = workers.Pool(byte_level(), chunks(), 2)
    answers = iter(pool)
    assert next(answers)[0] == 0
    assert at_rest.wait(600)
    assert len(taken) <= 2 * workers.AHEAD + 3
    pool.close()


@pytest.mark.parametrize("victim", [0, 1])
def test_worker_that_dies_is_one_line(victim):
    data = opened(workers=2)
    data.batches(0)
    pids = [w.pid for w in data.batches.feed.workers]
    os.kill(pids[victim], signal.SIGKILL)
    with pytest.raises(ChildProcessError, match=rf"a tokenising process \({pids[victim]}\) was ended by SIGKILL") as caught:
        words(data, 500, 1)
    assert "\n" not in str(caught.value)
    assert not running(pids)
    assert not threads()


def test_a_worker_that_cannot_be_started_leaves_nothing_open(monkeypatch):
    """Of two, the first ran on, and the source stayed open."""
    begun, right, data, other = [], subprocess.Popen, opened(workers=2), opened()
    words(other, 40)
    data.batches.restore(other.batches.state())

    def failing(*args, **kwargs):
        if begun:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        begun.append(right(*args, **kwargs))
        return begun[0]

    monkeypatch.setattr(subprocess, "Popen", failing)
    with pytest.raises(BlockingIOError):
        data.batches(40)
    assert begun[0].returncode is not None
    assert begun[0].stdin.closed
    assert data.batches.source.records is None
    assert not threads()
    monkeypatch.undo()
    assert equal(data.batches(40), other.batches(40)), "it can be tried again"
    data.close()
    other.close()


def test_bad_line_is_named_through_a_worker(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(DOCUMENTS[:300]) + b'{"text": 3}\n')
    data = open_data([str(tmp_path / "a.jsonl")], byte_level(), 257, workers=2, **SIZES)
    with pytest.raises(InputError, match=r"a\.jsonl: line 301 has no string 'text'"):
        words(data, 500)
    assert not threads()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_outlives_its_parent(end):
    program = f"""
import sys
from minisl.data import open_data
data = open_data([{str(folder())!r}], "bytes", 257, batch_size=4, seq_len=20, workers=2)
data.batches(0)
print(*[w.pid for w in data.batches.feed.workers], flush=True)
for k in range(1, 10**9):
    data.batches(k)
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    parent = subprocess.Popen([sys.executable, "-c", program], text=True, cwd=ROOT, **pipes)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert running(pids) == pids
    parent.send_signal(end)
    _, err = parent.communicate(timeout=600)
    assert parent.returncode != 0
    assert ("KeyboardInterrupt" in err) == (end == signal.SIGINT)  # its own, nothing from the workers
    deadline = time.time() + 300
    while running(pids) and time.time() < deadline:
        time.sleep(0.05)
    assert not running(pids)


def test_data_that_is_dropped_without_close_ends_with_the_process():
    program = f"""
from minisl.data import open_data
data = open_data([{str(folder())!r}], "bytes", 257, batch_size=4, seq_len=20, workers=2)
data.batches(0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")


def test_memory_is_flat(tmp_path):
    """Objects that a stream keeps do not grow with what has passed."""
    data = opened("packed")

    def kept(first, count):
        for k in range(first, first + count):
            data.batches(k)
        gc.collect()
        return len(gc.get_objects()), len(data.batches.pieces)

    kept(0, 400)  # several epochs
    (before, pieces), (after, later) = kept(400, 100), kept(500, 1000)
    assert after < before + 500
    assert max(pieces, later) < 10


# What is read


def test_zstd_and_parquet_are_the_same_documents(tmp_path):
    zstandard, pa = pytest.importorskip("zstandard"), pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    raw, squeeze = lines(DOCUMENTS[:300]), zstandard.ZstdCompressor().compress
    (tmp_path / "a.jsonl").write_bytes(raw)
    (tmp_path / "b.jsonl.zst").write_bytes(squeeze(raw[:5000]) + squeeze(raw[5000:]))  # two frames
    (tmp_path / "c.json.zst").write_bytes(squeeze(raw.rstrip(b"\n")))
    pq.write_table(pa.table({"n": range(300), "text": DOCUMENTS[:300]}), tmp_path / "d.parquet", row_group_size=70)
    for path in tmp_path.iterdir():
        for skip in (0, 1, 69, 70, 71, 140, 299, 300):
            assert list(files.read_records(path, "text", skip)) == DOCUMENTS[skip:300], (path.name, skip)


def test_ends_of_lines_blank_lines_and_lone_surrogates(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(
        b'\n{"text": "a"}\r\n  \n{"text": "\\ud83d\\ude42 \\ud83d"}\n{"n": 1, "text": "\\u0000 end"}')
    assert list(files.read_records(tmp_path / "a.jsonl", "text")) == [None, "a", None, "🙂 \ufffd", "\0 end"]


def test_another_field(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"content": t, "text": 1}) + "\n" for t in DOCUMENTS[:100]))
    data = open_data([str(tmp_path / "a.jsonl")], byte_level(), 257, text_field="content", **SIZES)
    assert texts(words(data, 5)[0])[0] in DOCUMENTS[:100]


@pytest.mark.parametrize(("name", "content", "said"), [
    ("a.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
    ("a.jsonl", b'{"text": "a"}\n\xff\xfe\n', "line 2 is not JSON"),
    ("a.jsonl", b"[" * 100_000, "line 1 is not JSON"),
    ("a.jsonl", b'["text"]', "line 1 is a JSON list; expected an object with a 'text' string"),
    ("a.jsonl", b'{"Text": "a", "url": 1}', r"line 1 has no string 'text' \(its fields: 'Text', 'url'\); choose .* --text-field"),
    ("a.jsonl", b'{"text": 3}', "line 1 has no string 'text'"),
    ("a.jsonl", b'{"text": null}', "too few documents"),
    ("a.jsonl", b'[\n{"text": "a"}]', "line 1 is not JSON .*make lines: jq"),
    ("a.jsonl", '{"text": "a"}\n'.encode("utf-16"), "line 1 is not JSON .it is UTF-16: iconv"),
    ("a.jsonl", b"", "too few documents"),
    ("a.jsonl", b'{"text": " "}\n' * 50, "too few documents"),
    ("a.jsonl.gz", b'{"text": "a"}', "too few documents"),
    ("a.jsonl.gz", b"text", "damaged after line 0"),
    ("a.json.gz", b"", "too few documents"),
    ("a.jsonl.gz", gzip.compress(lines(DOCUMENTS), mtime=0)[:-9], "damaged after line"),
])
def test_bad_files_are_named(name, content, said, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"^--data {re.escape(str(tmp_path / name))}: {said}") as caught:
        words(open_data([str(tmp_path / name)], byte_level(), 257, **SIZES), 300)
    assert "\n" not in str(caught.value)


def test_lines_without_end_are_refused_in_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LONGEST", 1000)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"a" * 10**6))
    with pytest.raises(InputError, match="line 1 has more than 1,000 bytes"):
        list(files.read_records(tmp_path / "a.jsonl.gz", "text"))


def test_damaged_zstd_and_parquet_are_named(tmp_path):
    zstandard, pa = pytest.importorskip("zstandard"), pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    squeezed = zstandard.ZstdCompressor().compress(lines(DOCUMENTS))
    pq.write_table(pa.table({"text": DOCUMENTS}), tmp_path / "good")
    pq.write_table(pa.table({"Text": DOCUMENTS}), tmp_path / "d.parquet")
    pq.write_table(pa.table({"text": [["a"]] * 50}), tmp_path / "e.parquet")
    whole = (tmp_path / "good").read_bytes()
    for name, content, said in (
            ("a.jsonl.zst", squeezed[:-9], "damaged after line"), ("b.jsonl.zst", b"nothing", "damaged after line 0"),
            ("c.parquet", whole[:-9], "damaged or not Parquet"), ("f.parquet", b"", "damaged or not Parquet"),
            ("d.parquet", None, "has no column 'text' .*'Text'"), ("e.parquet", None, "row 1 has no string 'text'")):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"^--data .*{name}: {said}"):
            words(open_data([str(tmp_path / name)], byte_level(), 257, **SIZES), 300)


def test_kinds_of_data_cannot_be_mixed(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(DOCUMENTS))
    (tmp_path / "b.txt").write_text("text")
    for wanted, said in (
            ([str(tmp_path)], "holds both files of documents .*glob"), ([str(tmp_path / "a.jsonl"), "python-docs"], "mixed"),
            (["c4", "python-docs"], "mixed"), (["hf:../x"], "not a dataset's name"), (["hf:"], "not a dataset's name")):
        with pytest.raises(InputError, match=said):
            open_data(wanted, byte_level(), 257, **SIZES)
    with pytest.raises(InputError, match="--batch-size 6: fewer sequences than the 7 processes"):
        opened(share=(0, 7))


def test_missing_packages_are_named(tmp_path, monkeypatch):
    for module, name in (("zstandard", "a.jsonl.zst"), ("pyarrow.parquet", "a.parquet")):
        (tmp_path / name).write_bytes(b"x")
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(InputError, match=rf"{name}: .* needs the package {module.split('.')[0]}: pip install 'minisl\[hf\]'"):
            open_data([str(tmp_path / name)], byte_level(), 257, **SIZES)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"--data c4: .* needs the package datasets: pip install 'minisl\[hf\]'"):
        open_data(["c4"], byte_level(), 257, **SIZES)


def test_bpe_is_trained_on_what_is_trained_on():
    data = open_data([str(folder())], "bpe", 300, **SIZES)
    assert data.tokenizer.vocab_size == 300
    assert data.sha256 is None
    assert data.tokenizer.to_json() == make_tokenizer("bpe", dataset.first_documents(
        sources.open_source([str(folder())]), 5, open_held_out()), 300).to_json()
    assert equal(data.batches(0), open_data([str(folder())], "bpe", 300, **SIZES).batches(0))


def open_held_out():
    return sources.open_source([str(folder())]).hold_out(12)


# The tests above, and the wrong implementations that they reject

CHECKS = (check_packed, check_padded, check_hold_out, check_resume, check_small_buffer, check_workers)
for check in CHECKS:
    globals()["test_" + check.__name__.removeprefix("check_")] = check

test_order = mutant_tests([
    (Shuffled.__next__, "self._begin(self.epoch + 1)", "self._begin(self.epoch)"),
    (Shuffled.__next__, "self.handed += 1", "pass"),
    (Shuffled.__next__, "self.numbers[k], self.numbers[-1] = self.numbers[-1], self.numbers[k]", "pass"),
    (Shuffled.__next__, "self.random.random_raw() %", "0 %"),
    (Shuffled._random, "bits.advance(self.handed)", "bits"),
    (Shuffled._random, "self.epoch", "0"),
    (Shuffled._read, "self.read += 1", "self.read += 2"),
    (Shuffled.state, "min(self.numbers, default=self.read)", "self.read"),
    (Shuffled.state, "self.numbers.copy()", "self.numbers"),
    (Shuffled.state, "self.marks[1][0] <= oldest", "False"),
    (sources.Source.__next__, "not text.isspace()", "text.isspace()"),
    (sources.Source.__next__, "self.taken += 1", "pass"),
    (sources.Source.__next__, "self.at + 1, 0, None", "self.at + 1, self.taken, None"),
    (sources.Source.__next__, "self.shards[self.order[self.at]], self.taken", "self.shards[self.order[self.at]], 0"),
], check_small_buffer)

test_batches = mutant_tests([
    (Stream._take, "if self.packed else 1)", "if self.packed else 1) + 1"),
    (Stream._take, "step + self.packed", "step"),
    (Stream._take, "(r + 1) * T + 1", "(r + 1) * T"),
    (Stream._take, "self._drop(step)", "self._drop(step + self.packed)"),
    (Stream._take, "self.next += 1", "self.next += 2"),
    (Stream._fetch, "self.skip -= gone", "pass"),
    (Stream._fetch, "([self.tokenizer.end], one)", "(one, [self.tokenizer.end])"),
    (Stream._fetch, "piece[gone:]", "piece"),
    (Stream._drop, "piece[1] + here", "piece[1]"),
    (Stream._drop, "piece[2][here:]", "piece[2][here + 1:]"),
    (Stream._own, "n = -self.skip", "n = 0"),
    (Stream._own, "k % self.batch_size in self.rows", "k % self.batch_size == 0"),
    (Stream.state, '"skip": gone', '"skip": 0'),
    (Stream._open, "self.seed, self.held_out", "0, self.held_out"),
    (Stream._open, "state=self.start", ""),
    (batches.padded, "row[1 + len(ids)] = end", "pass"),
    (batches.padded, "ids[:seq_len]", "ids[:seq_len - 1]"),
    (batches.inputs_and_labels, "np.where(inputs == IGNORE_LABEL, end, inputs)", "inputs"),
    (batches.inputs_and_labels, "end, inputs), labels", "end, inputs), np.where(labels == IGNORE_LABEL, end, labels)"),
    (batches.rows_of, "[rank]", "[0]"),
    (sources.Source._take, "seen % every == 0", "True"),
    (sources.Source._take, "here == of_each or ", ""),
    (sources.Source.hold_out, "-(-wanted // len(shards))", "wanted"),
    (dataset.open_data, "workers=workers, held_out=held_out", "workers=workers"),
    (batches.padded_validation, "text_of_first(seq_len, text)", "text_of_first(seq_len + 1, text)"),
    (dataset.Data.validation, "rows[:, 1:]", "rows[:, :-1]"),
], test_seeds_differ, check_packed, check_padded, check_hold_out, check_resume)

test_pool = mutant_tests([
    (workers.Pool.__iter__, "n % len(self.workers)", "(n + 1) % len(self.workers)"),
    (workers.Pool._feed, "n % len(self.workers)", "(n + 1) % len(self.workers)"),
    (workers.encode_here, "limit)", "5)"),
    (Stream.close, "feed.close()", "pass"),
    (Stream.close, "state = self.state()", "state = {**self.start, 'skip': self.skip, 'next': self.next}"),
], check_workers)

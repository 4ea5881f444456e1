"""Text that comes in: by what a file holds and not what it is called, each text once, nothing lost without a word."""

import codecs
import gzip
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from mutation import mutant_tests
from test_train import assert_same_run, resume, run_job
from tokenizer_cases import built, case
from tokenizers import models, pre_tokenizers

import minisl
from minisl import plot
from minisl.command import run_command
from minisl.data import __main__ as command
from minisl.data import corpora, load_corpus, load_documents, make_tokenizer, open_data, pieces, tokenize, tokenizers
from minisl.errors import InputError

sys.path.insert(0, str(Path(__file__).parent))
from stream_cases import DOCUMENTS, lines

ROOT = Path(minisl.__file__).parents[1]
SIZES = {"batch_size": 6, "seq_len": 40, "seed": 5}


@cache
def byte_level():
    return make_tokenizer("bytes", [], 257)


def opened(*sources, **more):
    return open_data([str(s) for s in sources], byte_level(), 257, **{**SIZES, **more})


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def training(data):
    """The ids of one epoch's batches, as text."""
    return "".join(byte_level().decode(row) for k in range(20) for row in data.batches(k)[0])


# Records, whatever the file is called

RECORDS = {
    "c4.json": lines, "corpus.txt": lines, "corpus": lines, "unpacked.jsonl.gz": lines, "unpacked.json.zst": lines,
    "packed.jsonl": lambda texts: gzip.compress(lines(texts)), "packed.json": lambda texts: gzip.compress(lines(texts)),
    "packed.gz": lambda texts: gzip.compress(lines(texts)), "bom.jsonl": lambda texts: codecs.BOM_UTF8 + lines(texts),
    "bom.json": lambda texts: b"\n \n" + codecs.BOM_UTF8 + lines(texts),
    "null first.json": lambda texts: b'{"text": null}\n' + lines(texts),
    "long first.json": lambda texts: lines(["x" * 70_000, *texts])}


@pytest.mark.parametrize("name", RECORDS)
def test_json_lines_are_no_raw_text_whatever_the_file_is_called(tmp_path, name):
    data = opened(written(tmp_path / name, RECORDS[name](DOCUMENTS[:100])), validation_documents=2)
    assert data.words.startswith(f"{tmp_path / name}: a stream of 1 file, ")
    assert '"text"' not in training(data)


def test_parquet_under_another_name(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"text": [None, "", *DOCUMENTS[:100]]}), tmp_path / "data.bin")
    data = opened(tmp_path / "data.bin", validation_documents=2)
    training(data)
    assert data.left_out() == f"--data {tmp_path / 'data.bin'}: 2 records without text left out"


@pytest.mark.parametrize(("name", "content", "said"), [
    ("a.json", json.dumps([{"text": t} for t in DOCUMENTS[:9]]), r"holds one JSON array; expected JSON lines .*jq -c"),
    ("a.json", json.dumps([{"id": 1, "text": t} for t in DOCUMENTS[:9]], indent=1), "holds one JSON array"),
    ("a.txt", '{"content": "a"}\n{"content": "b"}\n', r"line 1 has no string 'text' \(its fields: 'content'\); .*--text-field"),
    ("a.txt", ("a line\n" * 99).encode("utf-16"), r"not UTF-8 text \(it is UTF-16: iconv -f UTF-16 -t UTF-8"),
    ("a.txt", ("a line\n" * 99).encode("utf-32"), r"not UTF-8 text \(it is UTF-32: iconv"),
    ("a.txt", gzip.compress(b"a line\n" * 99), r"not UTF-8 text \(it is gzip: unpack it"),
    ("a.txt", b"\x1f\x8b no gzip", "damaged after line 0"), ("a.txt", b"a\xff", r"not UTF-8 text \(byte 1\)"),
])
def test_what_is_no_text_is_refused_with_what_to_do(tmp_path, name, content, said):
    written(tmp_path / name, content)
    for sources in ([tmp_path / name], [tmp_path], [f"{tmp_path}/*"]):
        with pytest.raises(InputError, match=f"^--data .*{name}: {said}"):
            opened(*sources)


@pytest.mark.parametrize("content", ['{\n "name": "minisl",\n "text": 3\n}\n', '{"name": "one line"}\n', "[1, 2]\n[3]\n",
                                     '[{"name": "x"}]\n', "{not JSON}\n", "{" * 3000 + "\n", "{} {}\n"])
def test_other_json_is_text_as_before(tmp_path, content):
    assert load_documents([str(written(tmp_path / "a.json", content * 30))]) == [content * 30]


def test_a_field_of_another_name_is_recognised_too(tmp_path):
    written(tmp_path / "a.json", "".join(json.dumps({"content": t}) + "\n" for t in DOCUMENTS[:60]))
    assert "a stream" in opened(tmp_path / "a.json", text_field="content", validation_documents=2).words


# Records without text


@pytest.mark.parametrize("workers", [0, 1])
def test_null_ends_no_run_and_is_counted(tmp_path, workers):
    empty = b'{"text": null}\n{"text": ""}\n\n{"text": " \\n"}\n'
    written(tmp_path / "a.jsonl", lines(DOCUMENTS[:60]) + empty + lines(DOCUMENTS[60:100]))
    written(tmp_path / "b.jsonl", lines(DOCUMENTS[:100]))
    with opened(tmp_path / "a.jsonl", workers=workers) as data, opened(tmp_path / "b.jsonl") as other:
        for k in range(200):  # several epochs
            assert np.array_equal(data.batches(k), other.batches(k))
        assert data.batches.epoch > 1
        assert data.left_out().endswith("a.jsonl: 3 records without text left out"), "each once"
        assert other.left_out() == ""
        before = data.batches.state()
        expected = [data.batches(k) for k in range(200, 220)]
        data.batches.restore(before)
        assert np.array_equal([data.batches(k) for k in range(200, 220)], expected)


def test_prepare_says_what_it_left_out(tmp_path, capsys):
    written(tmp_path / "a.jsonl", lines(DOCUMENTS[:30]) + b'{"text": null}\n')
    argv = ["prepare", *[str(tmp_path / "a.jsonl")] * 2, "--out", str(tmp_path / "out"), "--tokenizer", "bytes"]
    assert run_command(command.main, argv) == 0
    found = capsys.readouterr()
    assert "29 documents" in found.out
    twice, empty = found.err.splitlines()
    assert twice.endswith(f"1 file ({tmp_path / 'a.jsonl'}) named twice; each counts once")
    assert empty.endswith("1 record without text left out")


def test_a_repaired_line_does_not_bar_the_way_back(tmp_path):
    """The run had read to the line before; the file has another size now."""
    good = [json.dumps({"text": t}) + "\n" for t in DOCUMENTS[:300]]
    path = written(tmp_path / "a.jsonl", "".join([*good[:200], '{"text": \n', *good[200:]]))
    data = opened(path, validation_documents=5)
    with pytest.raises(InputError, match="line 201 is not JSON"):
        [data.batches(k) for k in range(400)]
    state = json.loads(json.dumps(data.batches.state()))
    written(path, "".join(good))
    again = opened(path, validation_documents=5)
    again.batches.restore(state)
    assert again.notes == [f"--data {path}: has another size than when this run was saved, and goes on at the same record"]
    other = opened(path, validation_documents=5)
    assert all(np.array_equal(again.batches(k), other.batches(k)) for k in range(state["next"], 400))
    written(path, "".join(good[10:]))
    with pytest.raises(InputError, match="is not what this run was trained on"):
        opened(path, validation_documents=5).batches.restore(state)


# Each text once


@pytest.mark.parametrize("how", ["folder and glob", "link", "hard link", "copy", "dot", "twice"])
def test_a_text_that_is_named_twice_is_not_trained_on_where_it_is_held_out(tmp_path, monkeypatch, how):
    (tmp_path / "texts").mkdir()
    monkeypatch.chdir(tmp_path)
    for n in range(40):
        written(tmp_path / "texts" / f"{n:02}.txt", f"document {n}\n" * 9)
    first = Path("texts/19.txt")
    more = {"folder and glob": ["texts/*.txt"], "dot": ["./texts/../texts/19.txt"], "twice": ["texts"]}.get(how, [])
    if how == "link":
        os.symlink("19.txt", "texts/a.txt")
    elif how == "hard link":
        os.link(first, "texts/a.txt")
    elif how == "copy":
        written(Path("texts/a.txt"), first.read_bytes())
    corpus, alone = load_corpus(["texts", *more]), load_corpus(["texts/??.txt"])
    assert (corpus.train, corpus.validation, corpus.sha256) == (alone.train, alone.validation, alone.sha256)
    [note] = corpus.notes
    assert "named twice, or with the text of another; each text counts once" in note
    assert not alone.notes


def test_a_stream_that_is_named_twice_is_read_once(tmp_path):
    written(tmp_path / "a.jsonl", lines(DOCUMENTS[:100]))
    (tmp_path / "b.jsonl").symlink_to("a.jsonl")
    data, other = opened(tmp_path, f"{tmp_path}/*.jsonl"), opened(tmp_path / "a.jsonl")
    assert len(data.notes) == 1
    assert all(np.array_equal(data.batches(k), other.batches(k)) for k in range(200))


def test_a_corpus_that_is_named_twice_counts_once(monkeypatch):
    monkeypatch.setitem(corpora.NAMED, "three", lambda: ["a", " ", "b", "a"])
    assert load_documents(["three"] * 2) == ["a", "b", "a"]


def test_empty_files_are_said(tmp_path):
    for name, content in (("a", "text\n" * 30), ("b", " \n"), ("c", ""), ("d", "more\n" * 30)):
        written(tmp_path / name, content)
    corpus = load_corpus([str(tmp_path)])
    assert len(corpus.train) == 2
    assert corpus.notes == [f"--data {tmp_path}: 2 files ({tmp_path / 'b'}, ...) without text, left out"]


def test_a_byte_order_mark_is_no_text(tmp_path):
    text = "a line\n" * 50
    assert load_documents([str(written(tmp_path / "a.txt", codecs.BOM_UTF8 + text.encode()))]) == [text]


# Files that do not fit


def test_a_large_file_is_the_same_text(tmp_path, monkeypatch):
    """Split, hash and ids are those of a file that is held in memory."""
    text = "".join(f"line {n}: naïve 日本 🙂\r\n" for n in range(4000))
    path = str(written(tmp_path / "a.txt", codecs.BOM_UTF8 + text.encode()))
    small, held = load_corpus([path]), opened(path)
    monkeypatch.setattr(corpora, "LARGE", 1000)
    monkeypatch.setattr(pieces, "PIECE", 1000)
    large, read = load_corpus([path]), opened(path)
    assert isinstance(large.train[0], pieces.LongText)
    assert [pieces.whole(d) for d in large.train] == small.train
    assert (large.validation, large.sha256, read.sha256) == (small.validation, small.sha256, held.sha256)
    assert np.array_equal(tokenize(byte_level(), large.train, tmp_path, in_memory=10), tokenize(byte_level(), small.train))
    assert make_tokenizer("bpe", large.train, 300).to_json() == make_tokenizer("bpe", small.train, 300).to_json()
    written(tmp_path / "a.txt", b"a" * 5000 + b"\xff" + b"a" * 5000)
    with pytest.raises(InputError, match=r"not UTF-8 text \(byte 5000\)"):
        load_corpus([path])


def check_pieces():
    """Of every kind of tokenizer, whatever it puts before a text or between words."""
    rng = np.random.default_rng(1)
    words = ["the", "cat", "sat.", "Don't", "naïve", "日", "no", "\n", "\n\n", "  ", "\t", "2024", "it's", "🙂", ",", "</s>"]
    for name in ("bytes", "bpe", "llama 2", "gemma", "t5", "unigram with bytes", "bert", "words"):
        tokenizer = case(name)
        for n in range(name in ("bert", "words"), 7):  # these know no word that long
            text = (" " if n % 2 else "").join(rng.choice(words, 900)) if n else "a" + "thecat" * 250
            ids = tokenizer.encode(text)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(pieces, "PIECE", 300)
                assert len(list(pieces.pieces(text, tokenizer.apart))) > 4
                assert tokenizer.encode(text) == ids, (name, n)


def test_a_bpe_of_text_without_spaces_ends(monkeypatch):
    """Its time goes with the square of the longest word, which was all of 2 MB of DNA."""
    text = "".join(np.random.default_rng(0).choice(list("ACGT"), 100_000))
    tokenizer = make_tokenizer("bpe", [text], 300)
    assert tokenizer.vocab_size == 300
    assert tokenizer.decode(tokenizer.encode(text)) == text
    monkeypatch.setattr(tokenizers, "LONGEST_WORD", 8)
    learned = make_tokenizer("bpe", ["ACGTACGTTT" * 1000, "sixteen_letters_"], 300)
    assert max(len(token) for token in learned.inner.get_vocab() if token != tokenizers.END) == 8
    assert json.loads(learned.to_json())["pre_tokenizer"]["type"] == "ByteLevel", "as ever"


def test_a_bpe_of_a_large_text_sees_all_parts_of_it(monkeypatch):
    monkeypatch.setattr(tokenizers, "BPE_TEXT", 1000)
    found = list(tokenizers.bpe_text([f"document {n} " * 10 for n in range(40)]))
    assert 800 < sum(map(len, found)) <= 1200
    assert found[0].startswith("document 0 ")
    assert found[-1] > "document 35"


def test_ctrl_c_while_a_bpe_is_trained():
    """The library held the main thread until it was done."""
    program = """
import os, signal, threading
from minisl.data import tokenizers

class Endless:
    def train_from_iterator(self, *_):
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait()

try:
    tokenizers.interruptible(lambda: Endless().train_from_iterator())
except KeyboardInterrupt:
    print("heard")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "heard\n", "")


def test_memory_does_not_go_with_the_length_of_a_text(tmp_path):
    """200 bytes a character were needed: 4.2 GB for 20 MB."""
    program = f"""
import resource
from minisl.data import make_tokenizer, tokenize, tokenizers
tokenizers.AT_ONCE >>= 4
tokenizer, text = make_tokenizer("bytes", [], 257), "some words of text\\n" * 80_000
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ids = tokenize(tokenizer, [text], {str(tmp_path)!r}, in_memory=0)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / len(text), len(ids) - len(text))
"""
    pytest.importorskip("resource")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    per_character, marks = done.stdout.split()
    assert float(per_character) < 100, done.stderr
    assert marks == "1"


# What a tokenizer loses


def check_marks():
    """In these vocabularies "</s>" is a word like others."""
    for name in ("t5", "unigram with bytes", "llama 2", "bytes"):
        tokenizer = case(name)
        for text in ("</s>", "a</s>t", "the </s> cat", "</s></s>"):
            ids = tokenizer.encode(text)
            assert tokenizer.end not in ids, (name, text)
            assert tokenizer.decode(ids) == text, (name, text)
    unknown = built(models.WordLevel({"</s>": 0, "cat": 1}, unk_token="</s>"), pre_tokenizers.WhitespaceSplit(), marks=["</s>"])
    assert unknown.encode("cat dog cat </s>") == [1, 1], "has no other id for it: lost"
    assert unknown.encode_documents(["dog", "cat"]).tolist() == [0, 0, 1]
    assert case("t5").to_json() == tokenizers.Tokenizer(tokenizers.tokenizers.Tokenizer.from_str(case("t5").to_json())).to_json()


@pytest.mark.parametrize(("name", "text", "said"), [
    ("words", "cat unknown words of all kinds ", r"loses 8\d\.\d% of the held-out text"), ("bytes", "naïve 日本 🙂", None),
    ("llama 2", "naïve 日本 🙂", None), ("bert", "the cat\n\n\n", r"loses \d\d\.\d%"), ("words", "cat sat </s> ", "loses")])
def test_a_tokenizer_that_loses_text_makes_bits_per_byte_a_lie_and_is_said(tmp_path, name, text, said):
    written(tmp_path / "a.txt", f"{text}\n" * 400)
    tokenizer = case(name)
    data = open_data([str(tmp_path / "a.txt")], tokenizer, tokenizer.vocab_size, **SIZES)
    if said is None:
        assert data.notes == []
    else:
        [note] = data.notes
        assert re.search(f"--tokenizer tokenizer: {said}.*bits per byte are too low", note)


@pytest.mark.parametrize("more", [{"accumulate": 2, "data_workers": 1}, {"protocol": "padded"}])
def test_what_ends_a_run_has_it_saved_first(tmp_path, monkeypatch, capsys, more):
    """All steps since the last checkpoint were gone, and the repaired file was refused."""
    monkeypatch.setattr(plot, "loss_figure", lambda path, *_: path.write_bytes(b"a figure"))
    good = [json.dumps({"text": f"document {n}"}) + "\n" for n in range(1300)]
    flags = {"steps": 20, "save_every": 1000, "eval_every": 1000, "validation_documents": 3, **more}
    data = written(tmp_path / "a.jsonl", "".join(good))
    whole = run_job(tmp_path, **flags, data=data, out=tmp_path / "whole")
    written(data, "".join([*good[:1100], '{"text": \n', *good[1100:]]))
    run = run_job(tmp_path, 2, **flags, data=data)
    err = capsys.readouterr().err
    assert re.search(r"error: .*a\.jsonl: line 1101 is not JSON", err)
    assert 0 < int(re.search(r"saved at step (\d+); go on with: .*--resume", err)[1]) < 20
    written(data, "".join(good))
    assert resume(run) == 0
    assert_same_run(run, whole)


def test_pieces_have_the_ids_of_the_whole():
    check_pieces()


def test_a_mark_that_a_text_spells_is_text():
    check_marks()


test_mutants = mutant_tests([
    (tokenizers.Tokenizer._encoded, "ids[ids != self.end]", "ids"),
    (tokenizers.Tokenizer._encoded, "len(self._plain(before)) if before else 0", "0"),
    (tokenizers.Tokenizer.apart, "[: len(left)] == left", "is not None"),
    (pieces.pieces, "yield before, rest\n", "yield before, rest[:-1]\n"),
], check_pieces, check_marks)

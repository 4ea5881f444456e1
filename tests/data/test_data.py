"""Text, tokens and batches: nothing lost, nothing twice, the same on every machine."""

import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tokenizers

import minisl
from minisl.data import Batches, load_corpus, load_documents, make_tokenizer, open_data, tokenize, validation_batches
from minisl.data.tokenizers import END, Tokenizer, load_tokenizer
from minisl.errors import InputError

TEXTS = [
    "plain words", " leading and  double  spaces ", "line\nbreak\r\n\ttab", "naïve café, Ελλάδα, 日本語, العربية",
    "🙂 👩‍👩‍👧‍👦 🏴󠁧󠁢󠁥󠁮󠁧󠁿", "e\u0301 is not \u00e9", "\ufeff\ufffd\x00\x7f\u200b\U0010ffff", "1234567 it's we'll", "",
    f"a text that spells {END} is text", f"{END}{END}", "<s></s>[PAD]<unk>",
]


@pytest.fixture(scope="module")
def docs():
    return load_corpus()


@pytest.fixture(scope="module")
def bpe(docs):
    return make_tokenizer("bpe", docs.train[:300], 400)


# Corpora


def test_python_docs_is_what_it_says(docs):
    documents = docs.train + docs.validation
    assert 1.5e6 < sum(map(len, documents)) < 5e6
    assert len(set(documents)) == len(documents)
    assert any(d.startswith('The "assert" statement\n***') for d in documents)
    assert inspect.getdoc(textwrap.dedent) in documents
    assert not any(d.isspace() or not d for d in documents)


def test_python_docs_is_the_same_in_every_process(docs):
    """Rejects an order taken from a set or from the file system."""
    program = "from minisl.data import load_corpus; print(load_corpus().sha256)"
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": "12345"}, text=True,
                          cwd=Path(minisl.__file__).parents[1], capture_output=True, check=True)
    assert done.stdout.strip() == docs.sha256


def test_every_20th_document_is_held_out_and_none_is_in_both(tmp_path):
    for n in range(45):
        (tmp_path / f"{n:02}.txt").write_text(f"document {n}")
    corpus = load_corpus([str(tmp_path)])
    assert corpus.validation == ["document 19", "document 39"]
    assert corpus.train == [f"document {n}" for n in range(45) if n not in (19, 39)]


def test_docs_are_split_without_overlap(docs):
    assert not set(docs.train) & set(docs.validation)
    assert len(docs.validation) == (len(docs.train) + len(docs.validation)) // 20


def test_single_file_is_split_at_a_line_near_95_percent(tmp_path):
    text = "".join(f"line {n} of the file\n" for n in range(500))
    (tmp_path / "a.txt").write_text(text)
    corpus = load_corpus([str(tmp_path / "a.txt")])
    [train], [held_out] = corpus.train, corpus.validation
    assert train + held_out == text
    assert train.endswith("\n")
    assert 0.94 < len(train) / len(text) <= 0.95


def test_single_file_without_a_line_there_is_split_near_95_percent_too(tmp_path):
    """Rejects going back to the only line break, and training on a title."""
    text = "title\n" + "word " * 1000
    (tmp_path / "a.txt").write_text(text)
    corpus = load_corpus([str(tmp_path / "a.txt")])
    assert corpus.train + corpus.validation == [text[: len(corpus.train[0])], text[len(corpus.train[0]) :]]
    assert 0.94 < len(corpus.train[0]) / len(text) < 0.96


def test_each_of_a_few_files_gives_some_of_its_end(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(f"{name} line\n" * 100)
    corpus = load_corpus([str(tmp_path / "a"), str(tmp_path / "b")])
    assert [d[0] for d in corpus.train] == [d[0] for d in corpus.validation] == ["a", "b"]
    assert load_documents([str(tmp_path / "b")]) == ["b line\n" * 100]


def test_folders_globs_and_files_give_the_same_documents_in_order(tmp_path):
    for name in ("b.txt", "sub dir/a.txt", "z.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "index").write_bytes(b"\xff\xfe")  # hidden: not text anybody meant
    names = ["b.txt", "sub dir/a.txt", "z.txt"]
    assert load_documents([str(tmp_path)]) == names
    assert load_documents([f"{tmp_path}/**/*.txt"]) == names
    assert load_documents([str(tmp_path / n) for n in reversed(names)]) == names[::-1]


def test_hash_notices_any_change_of_the_text(tmp_path):
    hashes = set()
    one, two = "one" * 20, "two" * 20
    for texts in ([one, two], [two, one], [one + two], [one, two + "!"]):
        for n, text in enumerate(texts):
            (tmp_path / str(n)).write_text(text)
        hashes.add(load_corpus([str(tmp_path / str(n)) for n in range(len(texts))]).sha256)
    assert len(hashes) == 4


# Tokenizers


@pytest.mark.parametrize("kind", ["bytes", "bpe", "file"])
@pytest.mark.parametrize("text", TEXTS)
def test_round_trip(kind, text, bpe, tmp_path):
    if kind == "file":
        (tmp_path / "tokenizer.json").write_text(bpe.to_json(), "utf-8")
    tokenizer = {"bytes": lambda: make_tokenizer("bytes", [], 257), "bpe": lambda: bpe,
                 "file": lambda: load_tokenizer(tmp_path / "tokenizer.json")}[kind]()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.end not in ids
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    if kind == "bytes":
        assert len(ids) == len(text.encode())


def test_bytes_have_257_ids():
    tokenizer = make_tokenizer("bytes", [], 257)
    assert tokenizer.vocab_size == 257
    ids = tokenizer.encode("".join(map(chr, range(0x800))) + "🙂\U0010ffff\u4e00")
    assert len({*ids, tokenizer.end}) > 190  # each valid byte its own
    with pytest.raises(InputError, match="257 ids"):
        make_tokenizer("bytes", [], 256)


def test_bpe_has_the_size_asked_for_and_compresses(bpe, docs):
    assert bpe.vocab_size == 400
    text = "\n".join(docs.validation)
    assert len(bpe.encode(text)) < 0.7 * len(text.encode())


def test_bpe_training_twice_gives_the_same_merges(bpe, docs):
    assert make_tokenizer("bpe", docs.train[:300], 400).to_json() == bpe.to_json()


def test_end_stands_before_each_document_and_nowhere_else(bpe):
    ids = bpe.encode_documents(TEXTS)
    assert ids.dtype == np.uint16
    assert ids[0] == bpe.end
    pieces = np.split(ids, np.flatnonzero(ids == bpe.end))[1:]
    assert [bpe.decode(p[1:]) for p in pieces] == TEXTS
    assert all(bpe.decode(p) == text for p, text in zip(pieces, TEXTS))  # the mark itself is no text


def test_large_vocabularies_do_not_wrap_around_in_16_bits():
    content = json.loads(make_tokenizer("bytes", [], 257).to_json())
    content["model"]["vocab"]["a"] = 70_000
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(content)))
    assert tokenizer.vocab_size == 70_001
    assert tokenizer.encode_documents(["a"]).tolist() == [tokenizer.end, 70_000]


def test_truncation_and_padding_of_a_given_file_are_off(bpe):
    """A tokenizer.json made for another purpose may cut every text at 8 ids."""
    inner = tokenizers.Tokenizer.from_str(bpe.to_json())
    inner.enable_truncation(8)
    inner.enable_padding(length=500)
    text = "a text of more than eight tokens, which must all be there"
    assert Tokenizer(inner).encode_documents([text]).tolist() == bpe.encode_documents([text]).tolist()


# Tokens


def test_memory_mapped_tokens_equal_those_in_memory(bpe, docs, tmp_path, monkeypatch):
    documents = docs.train[:40]
    monkeypatch.setattr("minisl.data.tokenizers.AT_ONCE", 1000)  # several batches
    plain, mapped = tokenize(bpe, documents), tokenize(bpe, documents, tmp_path, in_memory=10)
    assert isinstance(mapped, np.memmap)
    assert plain.dtype == mapped.dtype
    assert np.array_equal(plain, mapped)
    assert not list(tmp_path.iterdir())  # nothing to clean up, whatever happens


# Batches



@pytest.mark.parametrize(("share", "mine"), [((0, 1), True), ((0, 3), True), ((2, 3), False)])
def test_only_the_first_process_writes_to_the_folder(tmp_path, monkeypatch, share, mine):
    """Each of the others had a file of all the ids there, too."""
    asked, right = [], tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: asked.append(dir) or right(dir=dir))
    monkeypatch.setattr(tokenize, "__defaults__", (None, 100))  # characters in memory
    (tmp_path / "a.txt").write_text("a line of text\n" * 40)
    data = open_data([str(tmp_path / "a.txt")], "bytes", 257, batch_size=3, seq_len=8, share=share, folder=tmp_path)
    assert asked[0] == (tmp_path if mine else None)
    assert data.batches(0)[0].shape == (3 // share[1], 8)


def sequences(batches, k):
    """Batch k's rows, each with its last label: seq_len + 1 tokens."""
    inputs, labels = batches(k)
    return [(*row, int(last)) for row, last in zip(inputs.tolist(), labels[:, -1])]


def test_labels_are_the_inputs_shifted_by_one():
    batches = Batches(np.arange(1000, dtype=np.uint16), 4, 10, seed=0)
    for k in range(40):
        inputs, labels = batches(k)
        assert inputs.shape == labels.shape == (4, 10)
        assert np.array_equal(labels, inputs + 1)
        assert inputs.dtype == labels.dtype == np.int64


@pytest.mark.parametrize(("tokens", "expected"), [(61, 6), (60, 5), (69, 6), (11, 1)])
def test_each_epoch_visits_each_sequence_exactly_once(tokens, expected):
    """Also where the last batch of an epoch is filled up from the next one. Rejects sampling with replacement."""
    batches = Batches(np.arange(tokens), 4, 10, seed=3)
    assert batches.sequences == expected
    rows = [row for k in range(30) for row in sequences(batches, k)]
    whole = sorted(tuple(range(10 * n, 10 * n + 11)) for n in range(expected))
    for epoch in range(len(rows) // expected):
        assert sorted(rows[epoch * expected : (epoch + 1) * expected]) == whole


def test_epochs_and_seeds_have_different_orders():
    def order(epoch, seed):
        batches = Batches(np.arange(201), 4, 10, seed)  # five batches an epoch
        return [row for k in range(5) for row in sequences(batches, 5 * epoch + k)]

    first, second, other = order(0, 0), order(1, 0), order(0, 1)
    assert first != second
    assert first != other
    assert sorted(first) == sorted(second) == sorted(other) != first


def test_batch_k_does_not_depend_on_what_was_asked_before():
    forward, backward = (Batches(np.arange(101), 4, 10, seed=0) for _ in range(2))
    there = [sequences(forward, k) for k in range(12)]
    back = [sequences(backward, k) for k in reversed(range(12))]
    assert there == back[::-1]


@pytest.mark.parametrize("tokens", [0, 1, 10])
def test_too_few_tokens_for_a_sequence(tokens):
    with pytest.raises(InputError, match=re.escape("--seq-len 10")):
        Batches(np.arange(tokens), 4, 10, seed=0)


@pytest.mark.parametrize("tokens", [2, 5, 10, 11, 12, 21, 100, 101])
@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_validation_predicts_each_token_but_the_first_exactly_once(tokens, batch_size):
    predicted = []
    for inputs, labels in validation_batches(np.arange(tokens, dtype=np.uint16), batch_size, 10):
        assert inputs.shape == labels.shape
        assert len(inputs) <= batch_size
        real = labels >= 0
        assert np.array_equal(labels[real], inputs[real] + 1)
        assert (labels[~real] == -100).all()
        predicted += labels[real].tolist()
    assert predicted == list(range(1, tokens))


@pytest.mark.parametrize("tokens", [0, 1])
def test_nothing_to_validate_on(tokens):
    with pytest.raises(InputError, match="validation split is empty"):
        list(validation_batches(np.arange(tokens), 4, 10))

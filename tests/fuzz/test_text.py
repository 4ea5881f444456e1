"""Tokenizer files and text that are not what they should be: one line, no traceback, and no waiting for what never ends."""

import json
import os
import shutil
import socket
import tempfile
from functools import cache
from pathlib import Path

import pytest
from fuzz_checks import VALUES, accepted, as_json, damaged, edited, examples, must_notice, over, wrong
from hypothesis import given
from hypothesis import strategies as st

from minisl.data import corpora, files, load_documents, load_tokenizer, make_tokenizer, open_data, tokenize, tokenizers

TEXT = "The quick brown fox: naïve café, 東京, 🙂\n\tdef f(x): return x ** 2\n" * 3
PARTS = {  # what a tokenizer.json of another library may have, which ours have not
    "normalizer": (
        {"type": "NFKC"}, {"type": "Lowercase"}, {"type": "Prepend", "prepend": "▁"}, {"type": "Strip", "strip_left": True},
        {"type": "Replace", "pattern": {"String": ""}, "content": "a"},
        {"type": "Replace", "pattern": {"Regex": "(a*)*"}, "content": ""},
        {"type": "Sequence", "normalizers": []}, {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
        {"type": "Precompiled", "precompiled_charsmap": "////////////////"}, {"type": "BertNormalizer", "clean_text": True}),
    "pre_tokenizer": (
        {"type": "Whitespace"}, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}, {"type": "Digits"},
        {"type": "Split", "pattern": {"Regex": "(?:"}, "behavior": "Isolated", "invert": False},
        {"type": "Split", "pattern": {"Regex": ""}, "behavior": "Removed", "invert": False},
        {"type": "Split", "pattern": {"Regex": "(a|b|ab)*c"}, "behavior": "Isolated", "invert": True},
        {"type": "FixedLength", "length": 0}, {"type": "UnicodeScripts"}, None),
    "decoder": (
        {"type": "Strip", "content": " ", "start": 2**31, "stop": 2**31}, {"type": "Fuse"}, {"type": "ByteFallback"},
        {"type": "WordPiece", "prefix": "", "cleanup": True}, {"type": "CTC"}, {"type": "Sequence", "decoders": []}, None),
    "post_processor": (
        {"type": "ByteLevel"}, {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}},
        {"type": "RobertaProcessing", "sep": ["a", 2**32 - 1], "cls": ["b", 0]}, None),
    "truncation": ({"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 5}, None),
    "padding": ({"strategy": {"Fixed": 2**40}, "direction": "Left", "pad_id": 0, "pad_token": "x", "pad_type_id": 0}, None),
    "model": (
        {"type": "WordLevel", "vocab": {"<|endoftext|>": 0, "The": 5}, "unk_token": "?"},
        {"type": "WordPiece", "vocab": {"<|endoftext|>": 0}, "unk_token": "", "continuing_subword_prefix": "##",
         "max_input_chars_per_word": 0},
        {"type": "Unigram", "unk_id": 7, "vocab": [["<|endoftext|>", 0.0], ["a", -1e300]]},
        {"type": "Unigram", "unk_id": 0, "vocab": [["</s>", 0.0], ["", -1.0], ["e", 5.0]]},
        {"type": "BPE", "vocab": {"<|endoftext|>": 2**32 - 1, "a": 1, "b": 1}, "merges": [["a", "b"]]},
        {"type": "BPE", "vocab": {"</s>": 0, "a": 1}, "merges": [], "unk_token": "a", "byte_fallback": True, "dropout": 2.0})}


@cache
def real(kind):
    """A tokenizer.json, parsed."""
    return json.loads(make_tokenizer(kind, [TEXT], 300).to_json())


@st.composite
def tokenizer_files(draw):
    how = draw(st.sampled_from(("document", "document", "parts", "parts", "bytes", "any")))
    document = real(draw(st.sampled_from(("bytes", "bpe"))))
    if how == "parts":
        document = dict(document)
        for name in draw(st.lists(st.sampled_from(sorted(PARTS)), min_size=1, max_size=3)):
            document[name] = draw(st.sampled_from(PARTS[name]))
        return as_json(draw(edited(document, 2)) if draw(st.booleans()) else document)
    if how == "document":
        return as_json(draw(edited(document)))
    return draw(damaged(as_json(document))) if how == "bytes" else draw(st.one_of(st.binary(max_size=80), VALUES.map(as_json)))


def use(tokenizer):
    """All that the commands do with a tokenizer."""
    ids = tokenize(tokenizer, [TEXT, "x"])
    assert ids.max() < 2**32
    tokenizer.decode(ids[:50])
    tokenizer.decode_documents(ids)
    tokenizer.decode([tokenizer.end, 0, tokenizer.vocab_size - 1])
    tokenizer.encode("")
    tokenizer.to_json()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizers") / "tokenizer.json"


@given(content=tokenizer_files())
@examples(80, 1500)
def test_a_tokenizer_file_is_refused_by_name_or_works(path, content):
    """Rejects an exception of the library, or a panic of it, and one that comes later, at the first text."""
    check_tokenizer(path, content)


def check_tokenizer(path, content):
    path.write_bytes(content)
    good, tokenizer = accepted(load_tokenizer, path, names=[path])
    if good:
        accepted(use, tokenizer)
        accepted(make_tokenizer, str(path), [], 300)


# Text


PLAIN = TEXT * 10
CONTENTS = st.one_of(
    st.binary(max_size=200), st.text(max_size=200).map(lambda s: s.encode("utf-8", "surrogatepass")),
    st.just(PLAIN.encode()), st.just(PLAIN.encode()).flatmap(damaged), st.just(b"\xef\xbb\xbf" + PLAIN.encode()),
    st.sampled_from(("utf-16", "utf-32", "latin-1", "utf-7", "shift-jis")).map(lambda e: PLAIN.encode(e, "replace")),
    st.sampled_from((b"", b"\0" * 1000, b"a" * 30_000, b"\n" * 5000, b" \t" * 500, b"\xff" * 10, b"\r\n" * 9 + b"x",
                     b"\x1f\x8b\x08\0",
                     b"PK\3\4", b"\xed\xa0\x80" * 5, "\u2028".encode() * 400, b"{" * 3000, b"\x80\x04\x95")))
NAMES = st.one_of(st.sampled_from(("a", "b.txt", ".hidden", "with\nnewline", "[a]*", "-x", " ", "ünï", "\udcff\udcfe", "x" * 200,
                                   "a.jsonl")),
                  st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=8))
KINDS = ("file",) * 8 + ("folder", "fifo", "socket", "loop", "dangling", "parent", "device", "zero", "link")


@st.composite
def folders(draw):
    """(kind, name, content) of what is in a folder."""
    return draw(st.lists(st.tuples(st.sampled_from(KINDS), NAMES, CONTENTS), max_size=5, unique_by=lambda part: part[1]))


def place(folder, kind, name, content):
    path = folder / name
    try:
        if kind == "file":
            path.write_bytes(content)
        elif kind == "folder":
            path.mkdir()
            (path / "inner").write_bytes(content)
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
        else:
            path.symlink_to({"loop": name, "dangling": "nowhere", "parent": "..", "device": "/dev/null", "zero": "/dev/zero",
                             "link": "a"}[kind])
    except (OSError, ValueError):  # a name too long, or one that this system does not take
        pass


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("here"))  # for ** and the like
        yield tmp_path_factory.mktemp("text")


@given(parts=folders(), how=st.sampled_from(("folder", "each", "glob", "words")), words=st.lists(st.one_of(
    st.sampled_from(("/dev/zero", "/dev/null", "/dev/stdin", ".", "..", "/proc/self/mem", "/proc/self/fd/0", "a\0b", "**", "[",
                     "~", "*" * 50,
                     "a/" * 3000, "x" * 300, "\ud800", "/dev/tty", "/proc/1/mem", "file:///etc/passwd", "\n", "[!]", "{a,b}",
                     "/dev/full")),
    st.text(st.characters(exclude_characters="/."), max_size=6)), min_size=1, max_size=2))
@examples(100, 1000)
def test_text_is_refused_in_a_line_or_read(root, parts, how, words):
    """Rejects: waiting for a pipe that nobody writes to, reading /dev/zero, following links in circles, tracebacks of names."""
    folder = Path(tempfile.mkdtemp(dir=root))
    try:
        for part in parts:
            place(folder, *part)
        sources = {"folder": [str(folder)], "each": [str(folder / name) for _, name, _ in parts] or [str(folder)],
                   "glob": [f"{folder}/**/*"], "words": [w for w in words if not w.startswith(".")] or ["x"]}[how]
        good, data = accepted(open_data, sources, "bytes", 257, batch_size=1, seq_len=4)
        if good:
            assert data.validation_bytes
            with data:
                accepted(data.batches, 0)
        good, documents = accepted(load_documents, sources)
        assert not good or all(isinstance(d, str) for d in documents)
    finally:
        shutil.rmtree(folder)


@wrong((tokenizers.in_words.__wrapped__, 'type(error).__name__ != "PanicException"', "True"),
       (tokenizers.Tokenizer.__init__, "with in_words(where):", "if True:"))
def test_rejects_a_tokenizer(mutant, path, killed):
    must_notice(mutant, lambda: over(tokenizer_files(), lambda content: check_tokenizer(path, content), 1000), killed)


@wrong((files.find_files, "not path.is_file()", "False"),
       (corpora.read_text, "except UnicodeDecodeError as error", "except KeyError as error"),
       (files.find_files, "(OSError, ValueError, re.error)", "KeyError"))
def test_rejects_text(mutant, root, killed):
    must_notice(mutant, lambda: test_text_is_refused_in_a_line_or_read(root=root), killed)


def test_unchanged_it_passes(path):
    """What the wrong implementations of tokenizers fail, in the same words."""
    over(tokenizer_files(), lambda content: check_tokenizer(path, content), 10)

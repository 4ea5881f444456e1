"""Token shards: what is in them, how they are written, what training reads from them, and what is refused."""

import json
import re
import signal
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from mutation import mutant_tests

import minisl
from minisl import files
from minisl.backend import generator
from minisl.command import run_command
from minisl.data import __main__ as command
from minisl.data import load_corpus, make_tokenizer, open_data, shards
from minisl.data.shards import Permutation, Prepared, prepare
from minisl.errors import InputError

sys.path.insert(0, str(Path(__file__).parent))
from stream_cases import DOCUMENTS, equal, folder

ROOT = Path(minisl.__file__).parents[1]
SIZES = {"batch_size": 6, "seq_len": 40, "seed": 5}


@cache
def byte_level():
    return make_tokenizer("bytes", [], 257)


@contextmanager
def made(shard_tokens=9000, workers=0, sources=None, **more):
    with TemporaryDirectory() as parent:
        out = Path(parent) / "shards"
        prepare(sources or [str(folder())], out, "bytes", 257, shard_tokens, workers, **more)
        yield out


def opened(out, **more):
    return open_data([str(out)], **{"vocab_size": 257, **SIZES, **more})


def contents(out):
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def expected():
    """The training documents, in order."""
    held_out = set(shards.open_source([str(folder())]).hold_out(12))
    return [text for text in DOCUMENTS if text not in held_out]


def check_shards():
    """Each file by itself, as anybody would read it; documents do not cross shards; validation is apart."""
    with made(validation_documents=12) as out:
        index, end, found = json.loads((out / "index.json").read_text()), byte_level().end, []
        assert index["documents"] == len(expected())
        assert index["tokens"] == sum(1 + len(text.encode()) for text in expected())
        assert len(index["shards"]) > 3
        for n, shard in enumerate(index["shards"]):
            tokens, starts = np.load(out / f"tokens-{n:05}.npy"), np.load(out / f"documents-{n:05}.npy")
            assert tokens.dtype == np.uint16
            assert (len(tokens), len(starts)) == (shard["tokens"], shard["documents"])
            assert np.array_equal(starts, np.flatnonzero(tokens == end))
            assert n == len(index["shards"]) - 1 or 9000 <= len(tokens) < 9500
            found += [byte_level().decode(ids[1:]) for ids in np.split(tokens, starts[1:])]
        assert found == expected()
        held_out = [json.loads(line)["text"] for line in (out / "validation.jsonl").read_text().splitlines()]
        assert Counter([*held_out, *found]) == Counter(DOCUMENTS)
        assert sorted(path.name for path in out.parent.iterdir()) == ["shards"]


def check_training():
    """Each sequence once an epoch, across the borders of shards; the k-th at once, in any order."""
    with made(7000, validation_documents=12) as out:
        tokens = np.concatenate([[byte_level().end, *byte_level().encode(text)] for text in expected()])
        for protocol in ("packed", "padded"):
            data = opened(out, protocol=protocol)
            n = (len(tokens) - 1) // 40 if protocol == "packed" else len(expected())
            pairs = [data.batches(k) for k in range(2 * n // 6 + 1)]
            rows = [(*i.tolist(), *l.tolist()) for inputs, labels in pairs for i, l in zip(inputs, labels)]
            if protocol == "packed":
                cuts = [tokens[40 * k : 40 * k + 41].tolist() for k in range(n)]
                whole = [(*cut[:-1], *cut[1:]) for cut in cuts]
            else:
                ids = [[byte_level().end, *byte_level().encode(text), byte_level().end] for text in expected()]
                whole = [(*i[:-1], *[byte_level().end] * 41)[:40] + (*i[1:41], *[-100] * 41)[:40] for i in ids]
            assert Counter(rows[:n]) == Counter(rows[n : 2 * n]) == Counter(whole)
            assert rows[:n] != rows[n : 2 * n]
            again = opened(out, protocol=protocol)
            assert equal(again.batches(77), pairs[77])
            again.batches.restore(json.loads(json.dumps(again.batches.state())))
            assert again.batches.state() == {"next": 78}
            parts = [opened(out, protocol=protocol, share=(rank, 4)).batches(50) for rank in range(4)]
            assert equal([np.concatenate([part[side] for part in parts]) for side in (0, 1)], pairs[50])
            stream = open_data([str(folder())], byte_level(), 257, protocol=protocol, validation_documents=12, **SIZES)
            assert all(equal(*both) for both in zip(data.validation(), stream.validation(), strict=True))
            assert data.validation_bytes == stream.validation_bytes
        assert data.sha256
        assert data.tokenizer.to_json() == byte_level().to_json()


def check_permutation():
    for n in (1, 2, 3, 4, 5, 16, 17, 1000, 1025):
        order = Permutation(n, generator(0, "order", n))
        found = [order[k] for k in range(n)]
        assert sorted(found) == list(range(n))
    ranks = np.array([Permutation(10_000, generator(1))[k] for k in range(2000)])
    assert 3000 < np.abs(np.diff(ranks)).mean() < 3700  # of random pairs: 3333
    assert 4800 < ranks.mean() < 5200
    other = [Permutation(10_000, generator(2))[k] for k in range(2000)]
    assert (ranks == other).sum() < 10
    assert Permutation(10**14, generator(3))[10**13] < 10**14


def check_damage():
    """Any byte of any file: named in one line, when it is opened."""
    with made() as out:
        good = contents(out)
        for name, content in good.items():
            flipped = content[:-3] + bytes([content[-3] ^ 4]) + content[-2:]
            for bad in (content[:-1], content[:40], b"", flipped, content + b"\0", None):
                if name == "index.json" and bad == content[:-1]:
                    continue  # the line's end
                (out / name).unlink() if bad is None else (out / name).write_bytes(bad)
                if name in ("index.json", "tokenizer.json") and bad is None:
                    (out / name).write_bytes(content)
                    continue  # a folder of text, then
                with pytest.raises(InputError) as caught:
                    opened(out)
                (out / name).write_bytes(content)
                assert str(out / name) in str(caught.value)
                assert "\n" not in str(caught.value)
        opened(out)


def test_workers_and_runs_give_the_same_bytes():
    with made() as one, made(workers=2) as other:
        assert contents(one) == contents(other)


def test_text_held_in_memory_becomes_the_same_shards(tmp_path):
    """Its split is the one of training without shards."""
    for n in range(45):
        (tmp_path / f"{n:02}.txt").write_text(DOCUMENTS[n])
    corpus = load_corpus([str(tmp_path)])
    with made(sources=[str(tmp_path)]) as out:
        data, plain = opened(out), open_data([str(tmp_path)], byte_level(), 257, **SIZES)
        assert data.batches.tokens[: len(data.batches.tokens)].tolist() == plain.batches.tokens.tolist()
        assert all(equal(*both) for both in zip(data.validation(), plain.validation(), strict=True))
        assert Prepared(out).held_out() == corpus.validation


def test_large_vocabularies_take_32_bits(tmp_path):
    content = json.loads(byte_level().to_json())
    content["model"]["vocab"]["a"] = 70_000
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    prepare([str(folder())], tmp_path / "shards", str(tmp_path / "tokenizer.json"), 70_001)
    assert np.load(tmp_path / "shards" / "tokens-00000.npy").dtype == np.uint32


def test_beyond_a_gigabyte_sizes_and_ids_are_checked(monkeypatch):
    monkeypatch.setattr(shards, "CHECK_ALL", 1000)
    with made() as out:
        tokens = np.load(out / "tokens-00001.npy")
        tokens[500] = 4000
        np.save(out / "tokens-00001.npy", tokens)
        data = opened(out)
        with pytest.raises(InputError, match=r"tokens-00001\.npy: damaged \(it holds an id beyond the 257"):
            [data.batches(k) for k in range(200)]
        with pytest.raises(InputError, match=r"tokens-00001\.npy: damaged \(its SHA-256"):
            Prepared(out).check()


def test_names_in_the_index_are_not_paths():
    """Files are found by number: nothing in an index leads out of the folder."""
    with made() as out:
        index = json.loads((out / "index.json").read_text())
        index["shards"][0]["file"] = index["shards"][0]["tokens-file"] = "/etc/passwd"
        index["sha256"]["../secret"] = "x"
        (out / "index.json").write_text(json.dumps(index))
        assert {path.parent for path in Prepared(out).hashes} == {out}


def test_other_tokenizers_and_mixtures_are_refused(tmp_path):
    (tmp_path / "t.json").write_text(make_tokenizer("bpe", DOCUMENTS, 300).to_json())
    with made() as out:
        with pytest.raises(InputError, match="was made with another tokenizer"):
            opened(out, tokenizer=str(tmp_path / "t.json"), vocab_size=300)
        with pytest.raises(InputError, match="--vocab-size 257"):
            opened(out, vocab_size=256)
        with pytest.raises(InputError, match="cannot be mixed"):
            open_data([str(out), "python-docs"], vocab_size=257, **SIZES)
        with pytest.raises(InputError, match=r"--validation-documents 3: .* is no stream"):
            opened(out, validation_documents=3)
        opened(out, tokenizer="bytes")
        opened(out, tokenizer=byte_level())


def run(capsys, *argv):
    code = run_command(command.main, [str(a) for a in argv])
    return code, *capsys.readouterr()


def test_command(tmp_path, capsys):
    flags = ("--tokenizer", "bytes", "--shard-tokens", 9000, "--validation-documents", 10)
    code, out, _ = run(capsys, "prepare", folder(), "--out", tmp_path / "a b", *flags)
    assert code == 0
    assert re.search(r"[\d,]+ tokens of 590 documents in \d shards, 10 held out; train with --data .*a b", out)
    code, out, _ = run(capsys, "check", tmp_path / "a b")
    assert code == 0
    assert re.fullmatch(r".*a b: [\d,]+ tokens in \d shards, all as written\n", out)
    before = contents(tmp_path / "a b")
    (tmp_path / "file").write_text("x")
    (tmp_path / "b.preparing").mkdir()
    (tmp_path / "empty").mkdir()
    for argv, said in (
            ((folder(), "--out", tmp_path / "a b"), "exists and is not an empty folder"),
            ((folder(), "--out", tmp_path / "file"), "exists and is not an empty folder"),
            ((folder(), "--out", tmp_path / "b"), "another process is writing it, or was killed"),
            ((tmp_path / "none.jsonl", "--out", tmp_path / "c"), "no such file, folder or match"),
            ((tmp_path / "file", "--out", tmp_path / "c"), "too little text to hold out"),
            ((folder(), "--out", tmp_path / "c", "--workers", "-1"), "--workers -1: must be at least 0"),
            ((folder(), "--out", tmp_path / "c", "--shard-tokens", "0"), "--shard-tokens 0: must be at least 1"),
            ((folder(), "--out", tmp_path / "c", "--tokenizer", "bytes", "--vocab-size", "9"), "has 257 ids"),
            ((folder(), "--out", tmp_path / "c", "--text-field", "url"), "line 1 has no string 'url'"),
            (("python-docs", "--out", tmp_path / "c", "--validation-documents", "3"), "only for streams")):
        code, _, err = run(capsys, "prepare", *argv)
        assert code == 2, err
        assert re.match(f"error: .*({said}).*\n$", err), err
    code, _, err = run(capsys, "check", tmp_path / "empty")
    assert (code, len(err.splitlines())) == (2, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a b", "b.preparing", "empty", "file"]
    assert contents(tmp_path / "a b") == before
    assert run(capsys, "prepare", folder(), "--out", tmp_path / "empty", *flags)[0] == 0, "an empty folder may be there"


def test_into_the_folder_where_we_are(tmp_path, monkeypatch, capsys):
    """Its name is empty, which was a ValueError."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run(capsys, "prepare", folder(), "--out", ".", "--tokenizer", "bytes", "--validation-documents", 10)[0] == 0
    assert [p.name for p in tmp_path.iterdir()] == ["here"]
    assert len(Prepared(tmp_path / "here")) > 0


def test_what_fails_half_way_leaves_nothing(tmp_path, monkeypatch):
    real = np.save

    def full(file, array):
        if "documents-00002" in file.name:
            raise OSError(28, "No space left on device")
        real(file, array)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space left"):
        prepare([str(folder())], tmp_path / "out", "bytes", 257, 9000)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.usefixtures("hangup")
def test_killed_half_way_nothing_has_the_name(tmp_path, end):
    """And what can be answered leaves nothing at all."""
    argv = ["prepare", str(folder()), "--out", str(tmp_path / "out"), "--tokenizer", "bytes", "--workers", "1",
            "--shard-tokens", "9000"]
    program = f"""if True:
        import sys, time
        import numpy as np
        from minisl.command import run_command
        from minisl.data import __main__ as command
        real = np.save
        def save(file, array):
            if "documents-00001" in file.name:
                print("half way", flush=True)
                while True:  # in short: a signal just before a sleep does not end it
                    time.sleep(0.01)
            real(file, array)
        np.save = save
        sys.exit(run_command(command.main, {argv}))
    """
    child = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "half way\n" in child.stdout
    child.send_signal(end)
    _, err = child.communicate(timeout=600)
    assert child.returncode == (-end if end == signal.SIGKILL else 130), err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.preparing").exists() == (end == signal.SIGKILL)


CHECKS = (check_shards, check_training, check_permutation, check_damage)
for check in CHECKS:
    globals()["test_" + check.__name__.removeprefix("check_")] = check

test_rejects = mutant_tests([
    (shards.write_shards, "starts.append(size)", "starts.append(size + 1)"),
    (shards.write_shards, "size += 1 + len(ids)", "size += len(ids)"),
    (shards.write_shards, "parts += [mark, ids]", "parts += [ids, mark]"),
    (shards.write_shards, "if size >= shard_tokens", "if size > 2 * shard_tokens"),
    (shards.write_shards, "if parts:", "if False:"),
    (shards.in_order, "digest(text) not in hashes", "True"),
    (shards.chunks, "if texts:", "if False:"),
    (files.new_folder.__wrapped__, "os.rename(draft, path)", "shutil.copytree(draft, path)"),
    (Prepared.__getitem__, "start += len(parts[-1])", "start = stop"),
    (Prepared.__getitem__, "stop - first", "stop"),
    (Prepared.document, '"right"', '"left"'),
    (Prepared.document, "int(starts[k]) + 1", "int(starts[k])"),
    (Prepared.document, "if k + 1 < len(starts) else len(self.tokens[n])", "if k + 1 < len(starts) else -1"),
    (Prepared.check, "if not sound", "if False"),
    (Prepared.batches, 'generator(seed, "shards", epoch)', 'generator(seed, "shards")'),
    (Permutation.__getitem__, "if k < self.n", "if True"),
    (Permutation.__getitem__, "mixed(right ^ key)", "key"),
    (Permutation.__init__, "rng.integers(0, 2**63, 4)", "range(4)"),
], *CHECKS)

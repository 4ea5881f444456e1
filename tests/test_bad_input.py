"""What cannot be: exit code 2, one line that says what and what is allowed, and nothing written or changed."""

import json
import os
import shutil
from pathlib import Path

import filelock
import pytest
from test_train import changed_state, job

from minisl import checkpoint, evaluate, generate, plot, train
from minisl.backend import cuda_status
from minisl.command import run_command
from minisl.data import make_tokenizer


def refuse(capsys, command, argv, *words):
    """Run a command that must refuse: its one line of complaint holds all of `words`."""
    capsys.readouterr()
    code = run_command(command.main, [str(a) for a in argv])
    err = capsys.readouterr().err
    assert code == 2, err
    [line] = [line for line in err.splitlines() if not line.startswith("no Numba kernels")]  # said where they do not work
    assert line.startswith("error: ")
    for word in words:
        assert word in line


@pytest.fixture
def refuse_training(tmp_path, capsys):
    """refuse_training(flags, *words): the job with these flags is refused and leaves no folder."""

    def check(flags, *words):
        refuse(capsys, train, [*job(tmp_path), *flags], *words)
        assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == before

    before = sorted(p.name for p in tmp_path.iterdir() if p.is_dir())
    return check


# Flags

LEAST_1 = "must be at least 1 and below 2147483648"
NOT_NEGATIVE = "must be a finite number, 0 or above"
STRICTLY = "must lie strictly between 0 and 1"


@pytest.mark.parametrize(("flag", "value", "said"), [
    *(("--delta", value, STRICTLY) for value in ("0", "1", "-1", "2", "nan")),
    *((flag, value, LEAST_1) for value in ("0", "-1", "1" + 400 * "0") for flag in (
        "--steps", "--batch-size", "--accumulate", "--seq-len", "--eval-every", "--save-every", "--rank", "--vocab-size",
        "--hidden-size", "--num-key-value-heads")),
    *((flag, value, NOT_NEGATIVE) for value in ("-1", "nan", "inf", "1e999") for flag in (
        "--lr", "--alpha", "--weight-decay", "--clip-norm", "--min-lr-ratio")),
    ("--seed", "-1", "must be 0 or above"),
    ("--warmup", "13", "must lie between 0 and --steps 12"),
    ("--warmup", "-1", "must lie between 0 and --steps 12"),
    ("--steps", "1.5", "invalid int value"),
    ("--lr", "fast", "invalid float value"),
    ("--rank", "", "invalid int value"),
    ("--method", "lora", "full"),
    ("--method", "", "sltrain"),
    ("--dtype", "float16", "float64"),
    ("--schedule", "step", "cosine"),
    ("--device", "tpu", "cuda"),
    ("--algorithm", "fast", "factored"),
    ("--backend", "c", "numpy"),
    *((flag, "", "must not be empty") for flag in ("--data", "--tokenizer", "--out", "--resume")),
    ("--config", "", "--config NAME"),
])
def test_value_of_a_flag(refuse_training, flag, value, said):
    refuse_training([f"{flag}={value}"], flag, said)


@pytest.mark.parametrize(("flags", "said"), [
    (["--step=3"], "--step=3"),  # no abbreviation: it may mean another flag tomorrow
    (["--ranks=3"], "--ranks=3"),
    (["more"], "more"),
    (["--steps"], "--steps"),
    (["--data"], "--data"),
])
def test_unknown_abbreviated_and_missing(refuse_training, flags, said):
    refuse_training(flags, said, "--help lists all flags")


def test_nothing_to_train(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refuse(capsys, train, [], "--tiny", "--config", "--resume")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["sltrain", "low_rank"])
def test_rank_larger_than_a_matrix(refuse_training, method):
    refuse_training([f"--method={method}", "--rank=17"], "rank is 17", "16 x 16", "1 to 16")


def test_rank_larger_than_the_shared_key_heads_allow(refuse_training):
    refuse_training(["--num-key-value-heads=1", "--rank=9"], "rank is 9", "8 x 16", "1 to 8")


@pytest.mark.parametrize(("flags", "words"), [
    (["--num-attention-heads=3"], ("num_attention_heads is 3", "hidden_size 16")),
    (["--num-attention-heads=16"], ("num_attention_heads is 16", "even width")),
    (["--num-attention-heads=4", "--num-key-value-heads=3"], ("num_key_value_heads is 3", "must divide")),
])
def test_heads_that_do_not_divide(refuse_training, flags, words):
    refuse_training(flags, *words)


@pytest.mark.skipif(bool(cuda_status()[0]), reason="there is a GPU here")
def test_cuda_where_there_is_none(refuse_training):
    refuse_training(["--device=cuda"], "--device cuda", cuda_status()[1], "--device cpu")


# Data


@pytest.mark.parametrize(("content", "words"), [
    (None, ("no such file", "python-docs")),
    (b"", ("no text",)),
    (b" \n\n", ("no text",)),
    (b"good so far \xff\xfe", ("not UTF-8", "byte 12")),
    (b"short", ("too little text",)),
    (b"one two three, four five six", ("too few", "--seq-len 40")),
])
def test_data(refuse_training, tmp_path, content, words):
    path = tmp_path / "other ünï.txt"
    if content is not None:
        path.write_bytes(content)
    refuse_training([f"--data={path}", "--seq-len=40"], "--data", *words)


def test_data_in_an_empty_folder_and_a_glob_without_match(refuse_training, tmp_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("empty")
    refuse_training([f"--data={folder}"], f"--data {folder}", "no such file, folder or match")
    refuse_training([f"--data={folder}/**/*.txt"], "no such file, folder or match")


# Config

GOOD = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 257}


@pytest.mark.parametrize(("content", "words"), [
    ({"hiden_size": 16}, ("'hiden_size'", "did you mean 'hidden_size'")),
    ({**GOOD, "rope_thetta": 5e5}, ("'rope_thetta'", "did you mean 'rope_theta'")),
    ({**GOOD, "max_position_embedings": 5}, ("'max_position_embedings'", "did you mean 'max_position_embeddings'")),
    ({**GOOD, "hidden_size": "16"}, ("hidden_size is '16'", "must be int")),
    ({**GOOD, "vocab_size": "300"}, ("vocab_size is '300'", "must be int")),
    ({**GOOD, "hidden_size": 16.0}, ("hidden_size is 16.0", "must be int")),
    ({**GOOD, "num_hidden_layers": True}, ("num_hidden_layers is True", "must be int")),
    ({**GOOD, "tie_word_embeddings": 1}, ("tie_word_embeddings is 1", "must be bool")),
    ({**GOOD, "rms_norm_eps": "tiny"}, ("rms_norm_eps is 'tiny'", "must be float")),
    ({**GOOD, "rms_norm_eps": float("nan")}, ("rms_norm_eps is nan", "positive")),
    ({**GOOD, "rope_theta": 10**400}, ("rope_theta", "positive number below")),
    ({**GOOD, "vocab_size": 10**30}, ("vocab_size", "positive number below")),
    ({**GOOD, "num_hidden_layers": 0}, ("num_hidden_layers is 0", "positive")),
    ({**GOOD, "intermediate_size": -32}, ("intermediate_size is -32", "positive")),
    ({**GOOD, "num_key_value_heads": -1}, ("num_key_value_heads is -1", "must divide")),
    ({**GOOD, "bos_token_id": "x"}, ("bos_token_id is 'x'", "int or null")),
    ({**GOOD, "hidden_act": "gelu"}, ("hidden_act", "silu")),
    ({**GOOD, "rope_parameters": {"rope_type": "yarn"}}, ("yarn", "default")),
    ({**GOOD, "rope_parameters": "default"}, ("rope_parameters", "default")),
    ({**GOOD, "head_dim": 4}, ("head_dim is 4", "8")),
    ({k: v for k, v in GOOD.items() if k != "num_attention_heads"}, ("num_attention_heads is missing",)),
    ([GOOD], ("expected a JSON object", "list")),
    (b"{hidden_size: 16}", ("not JSON",)),
    (b"", ("not JSON",)),
    (b"\xff\xfe{}", ("not JSON",)),
    (b"[" * 100_000, ("not JSON",)),
    (b'{"hidden_size": 1' + 5000 * b"0" + b"}", ("not JSON",)),
    (None, ("--config", "no such file", "9m")),
])
@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_config(refuse_training, tmp_path, content, words, tokenizer):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    refuse_training([f"--config={path}", f"--tokenizer={tokenizer}"], *words)


def test_config_that_is_a_folder(refuse_training, tmp_path):
    refuse_training([f"--config={tmp_path}"], f"--config {tmp_path}", "no such file", "9m")


# Tokenizer


@pytest.mark.parametrize(("flags", "words"), [
    (["--vocab-size=256"], ("--tokenizer bytes", "257 ids", "with --vocab-size 257")),
    (["--tokenizer=bpe", "--vocab-size=256"], ("--vocab-size 256", "at least 257")),
    (["--tokenizer=nowhere.json"], ("--tokenizer nowhere.json", "bytes, bpe, or a tokenizer.json")),
    (["--tokenizer=FOLDER"], ("no such file", "bytes, bpe, or a tokenizer.json")),
    (["--tokenizer=FOLDER/model.json"], ("model.json", "not a tokenizer.json")),
    (["--tokenizer=FOLDER/text.txt"], ("text.txt", "not a tokenizer.json")),
    (["--tokenizer=FOLDER/large.json"], ("large.json", "has 300 ids", "vocab_size is 257", "--vocab-size 300")),
    (["--tokenizer=FOLDER/gap.json"], ("gap.json", "has 301 ids", "vocab_size is 257", "--vocab-size 301")),
    (["--tokenizer=FOLDER/endless.json"], ("endless.json", "no end-of-text token")),
])
def test_tokenizer(refuse_training, tmp_path, flags, words):
    (tmp_path / "large.json").write_text(make_tokenizer("bpe", [" ".join(map(str, range(300)))], 300).to_json())
    small = json.loads(make_tokenizer("bytes", [], 257).to_json())
    small["model"]["vocab"]["a"] = 300  # a vocabulary with holes: 257 entries, the largest id is 300
    (tmp_path / "gap.json").write_text(json.dumps(small))
    (tmp_path / "endless.json").write_text(make_tokenizer("bytes", [], 257).to_json().replace("endoftext", "beginning"))
    refuse_training([f.replace("FOLDER", str(tmp_path)) for f in flags], *words)


# Output folder


def test_out_below_a_file(refuse_training, tmp_path):
    refuse_training([f"--out={tmp_path}/text.txt/run"], f"--out {tmp_path}/text.txt/run", "cannot be written")
    refuse_training([f"--out={tmp_path}/text.txt"], f"--out {tmp_path}/text.txt", "cannot be written")


def test_out_where_nothing_may_be_made(refuse_training, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(Path, "mkdir", denied)
    refuse_training([], "--out", "cannot be written (Permission denied)")


def test_out_that_cannot_be_written_to(capsys, tmp_path, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(13, os.strerror(13))

    (tmp_path / "run").mkdir()
    monkeypatch.setattr(filelock.FileLock, "acquire", denied)
    refuse(capsys, train, job(tmp_path), "--out", "cannot be written (Permission denied)")
    assert not list((tmp_path / "run").iterdir())


def test_ctrl_c_before_the_first_step_leaves_no_folder(capsys, tmp_path, monkeypatch):
    def pressed(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "open_data", pressed)
    assert run_command(train.main, job(tmp_path)) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"
    assert not (tmp_path / "run").exists()


def test_out_with_somebodys_files_in_it_stays_as_it_is(capsys, tmp_path, monkeypatch):
    """Rejects writing config.json over a config.json, and removing a folder that was there before."""
    argv = job(tmp_path)
    (tmp_path / "model.json").rename(tmp_path / "config.json")
    before = contents(tmp_path)
    monkeypatch.chdir(tmp_path)
    for out in (".", tmp_path):
        refuse(capsys, train, [*argv, "--config=config.json", f"--out={out}"], f"--out {out}", "holds config.json",
               "no part of a run")
    assert contents(tmp_path) | {"model.json": b""} == before | {"model.json": b""}


# Runs


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with two runs of one job: `three` steps and `six`; and one of another method, `full`."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plot, "loss_figure", lambda path, *_: path.write_bytes(b""))
        for name, flags in {"three": ["--steps=3"], "six": ["--steps=6"], "full": ["--steps=3", "--method=full"]}.items():
            assert run_command(train.main, [*job(folder, out=folder / name), *flags]) == 0
    return folder


@pytest.fixture
def run(runs, tmp_path):
    return shutil.copytree(runs / "six", tmp_path / "six")


@pytest.mark.parametrize("command", [train, evaluate, generate])
@pytest.mark.parametrize("where", ["nowhere", "", "text.txt"])
def test_folder_that_is_no_run(capsys, tmp_path, command, where):
    path = tmp_path / where
    job(tmp_path)
    before = contents(tmp_path)
    refuse(capsys, command, ["--resume", path] if command is train else [path], str(path))
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("flags", "words"), [
    (["--method=sltrain"], ("--method full", "cannot go on with sltrain")),
    (["--rank=5"], ("--rank 4", "cannot go on with 5")),
    (["--seed=0"], ("--seed 42", "cannot go on with 0")),
    (["--tiny"], ("--tiny False",)),
    (["--dtype=float64"], ("--dtype float32", "cannot go on with float64")),
    (["--steps=3"], ("already at step 3 of 3", "larger --steps")),
    ([], ("already at step 3 of 3", "larger --steps")),
    (["--out=elsewhere"], ("--out elsewhere", "stays in its folder")),
    (["--steps=0"], ("--steps 0", LEAST_1)),
    (["--eval-every=0", "--steps=9"], ("--eval-every 0", LEAST_1)),
])
def test_resume_with_other_flags(capsys, runs, flags, words):
    before = contents(runs)
    refuse(capsys, train, ["--resume", runs / "full", *flags], *words)
    assert contents(runs) == before


def test_resume_to_fewer_steps_than_its_warmup(capsys, runs, run):
    shutil.copytree(runs / "three", run, dirs_exist_ok=True)
    shutil.rmtree(run / "step-00000006")
    with changed_state(run) as state:
        state["settings"] |= {"steps": 12, "warmup": 12}
    refuse(capsys, train, ["--resume", run, "--steps=9"], "--warmup 12", "between 0 and --steps 9")


def test_new_run_where_one_is(capsys, runs):
    before = contents(runs)
    refuse(capsys, train, job(runs, out=runs / "six"), "already holds a run", "--resume")
    assert contents(runs) == before


def test_resume_after_the_text_changed(capsys, runs, run, tmp_path):
    with changed_state(run) as state:
        state["settings"]["data"] = [str(tmp_path / "text.txt")]
    (tmp_path / "text.txt").write_text((runs / "text.txt").read_text().replace("\n", " \n", 1))
    for command, argv in ((train, ["--resume", run, "--steps=9"]), (evaluate, [run])):
        refuse(capsys, command, argv, "text.txt is not the text this run was trained on")
    (tmp_path / "text.txt").unlink()
    refuse(capsys, train, ["--resume", run, "--steps=9"], "text.txt", "no such file")


def test_resume_names_one_checkpoint(capsys, run):
    refuse(capsys, train, ["--resume", run / "step-00000005", "--steps=9"], "is one checkpoint; give its run", str(run))


def test_run_of_an_earlier_version(capsys, tmp_path):
    (tmp_path / "state.json").write_text("{}")
    for command, argv in ((train, ["--resume", tmp_path]), (evaluate, [tmp_path]), (generate, [tmp_path])):
        refuse(capsys, command, argv, f"{tmp_path}: was written by minisl 0.4 or earlier")


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(where):
    def damage(path):
        data = bytearray(path.read_bytes())
        data[int(where * (len(data) - 1))] ^= 0x80
        path.write_bytes(data)

    return damage


DAMAGES = {"truncated": truncate, "emptied": lambda p: p.write_bytes(b""), "deleted": Path.unlink, "first byte flipped": flip(0),
           "middle byte flipped": flip(0.5), "last byte flipped": flip(1), "JSON null": lambda p: p.write_text("null"),
           "JSON object": lambda p: p.write_text("{}"), "a folder": lambda p: (p.unlink(), p.mkdir())}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [*checkpoint.FILES, checkpoint.SUMS])
def test_damaged_checkpoint_is_named_and_the_one_before_is_used(capsys, run, name, damage):
    """By every command; asked for by name, it is refused. Where no other is left, so is the run."""
    DAMAGES[damage](run / "step-00000006" / name)
    before = contents(run)
    for command, argv, code in ((evaluate, [run], 0), (generate, [run, "--tokens=1"], 0)):
        capsys.readouterr()
        assert run_command(command.main, [str(a) for a in argv]) == code
        [line] = capsys.readouterr().err.splitlines()[:1]
        assert line.startswith(f"{run / 'step-00000006'}")
        assert line.endswith("passed over, step-00000005 is used")
    refuse(capsys, evaluate, [run / "step-00000006"], "step-00000006")
    DAMAGES[damage](run / "step-00000005" / name)
    spoiled = contents(run)
    for command, argv in ((train, ["--resume", run, "--steps=9"]), (evaluate, [run]), (generate, [run])):
        refuse(capsys, command, argv, "step-00000006", "and so are 1 more; no checkpoint is left that is whole")
    assert contents(run) | {"lock": b""} == spoiled | {"lock": b""}
    assert {k: v for k, v in before.items() if "00005" not in k} == {k: v for k, v in contents(run).items() if "00005" not in k
                                                                   } | {"lock": before["lock"]}


@pytest.mark.parametrize("key", ["step", "settings", "corpus", "versions", "tokens", "batch", "data", "processes"])
@pytest.mark.parametrize("value", [None, "text", [1], "missing"])
def test_state_with_a_wrong_part(capsys, run, key, value):
    with changed_state(run) as state:
        state[key] = value
        if value == "missing":
            del state[key]
    for command, argv in ((train, ["--resume", run, "--steps=9"]), (evaluate, [run])):
        refuse(capsys, command, argv, "state.json", "damaged or not written by minisl.train")


@pytest.mark.parametrize(("name", "value", "said"), [
    ("rank", "4", "--rank '4': must be int"), ("data", "text.txt", "must be list"), ("data", [5], "--data"),
    ("dtype", "int8", "allowed: float32"), ("batch_size", 0, LEAST_1), ("delta", 2.0, STRICTLY), ("colour", 1, "colour")])
def test_state_with_a_wrong_setting(capsys, run, name, value, said):
    with changed_state(run) as state:
        state["settings"][name] = value
    refuse(capsys, train, ["--resume", run, "--steps=9"], "state.json", said)


@pytest.mark.parametrize("line", [b"5", b"null", b"{}", b"{", b"\xff", b'{"step": "1", "loss": 1, "tokens": 1}'])
def test_resume_with_damaged_metrics(capsys, run, line):
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join([*lines[:2], line + b"\n", *lines[2:]]))
    before = contents(run)
    refuse(capsys, train, ["--resume", run, "--steps=9"], "metrics.jsonl")
    assert contents(run) == before


def test_run_with_the_tokenizer_of_another(capsys, run):
    folder = run / "step-00000006"
    (folder / "tokenizer.json").write_text(make_tokenizer("bpe", [" ".join(map(str, range(300)))], 270).to_json())
    with changed_state(run):
        pass
    for command, argv in ((train, ["--resume", run, "--steps=9"]), (evaluate, [run]), (generate, [run])):
        refuse(capsys, command, argv, "tokenizer.json", "270 ids", "257")


# The other commands


@pytest.mark.parametrize(("flag", "value", "said"), [
    ("--tokens", "0", "at least 1"), ("--tokens", "-3", "at least 1"), ("--tokens", "many", "invalid int"),
    ("--temperature", "-0.1", "at least 0"), ("--temperature", "nan", "at least 0"), ("--temperature", "inf", "finite"),
    ("--top-k", "-1", "at least 0"), ("--seed", "-1", "at least 0"), ("--temp", "1", "--help"), ("--prompt", "\udcff", "UTF-8"),
])
def test_generate(capsys, runs, flag, value, said):
    refuse(capsys, generate, [runs / "six", f"{flag}={value}"], flag, said)


@pytest.mark.parametrize(("flag", "value", "said"), [
    ("--batch-size", "0", "at least 1"), ("--batch-size", "-1", "at least 1"), ("--batch-size", "x", "invalid int"),
    ("--data", "nowhere.txt", "no such file"), ("--data", "", "must not be empty"), ("--batch", "1", "--help"),
])
def test_evaluate(capsys, runs, flag, value, said):
    refuse(capsys, evaluate, [runs / "six", f"{flag}={value}"], flag, said)


@pytest.mark.parametrize("command", [evaluate, generate])
def test_no_run_given(capsys, command):
    refuse(capsys, command, [], "run", "--help lists all flags")


def test_too_little_memory_is_one_line_and_code_1(capsys, tmp_path):
    code = run_command(train.main, [*job(tmp_path), "--hidden-size=536870908"])
    [line] = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("no Numba kernels")]
    assert (code, line.split()[:4]) == (1, ["error:", "Unable", "to", "allocate"])
    assert not (tmp_path / "run").exists()


def test_folder_of_a_run_that_never_saved(capsys, tmp_path):
    (tmp_path / "lock").write_text("7\n")
    refuse(capsys, train, ["--resume", tmp_path], "ended before its first checkpoint; begin it again with --out")


def test_out_with_a_name_that_is_too_long(capsys, tmp_path):
    refuse(capsys, train, job(tmp_path, out="x" * 300), "--out xxx", "cannot be written (File name too long)")


def test_decompose_for_a_method_without_factors(capsys, tmp_path, runs):
    folder = runs / "full" / "step-00000003"
    refuse(capsys, train, [f"--from-hf={folder}", "--method=full", "--decompose=random"], "--decompose", "it is for sltrain")

"""The flags of the public SLTrain script (torchrun_main.py): each is understood, or refused with what to write instead."""

import pytest
from test_bad_input import refuse, refuse_training  # noqa: F401
from test_train import assert_same_run, job, quick_figure, read, resume, run_job  # noqa: F401

from minisl import config, train
from minisl.config import parse
from minisl.errors import InputError

UNDERSTOOD = {  # flag: a value, and the setting it becomes
    "--model_config": ("60m", "config", "60m"), "--continue_from": ("runs/001", "resume", "runs/001"),
    "--batch_size": ("8", "batch_size", 8), "--gradient_accumulation": ("4", "accumulate", 4),
    "--total_batch_size": ("64", "accumulate", 4), "--max_length": ("512", "seq_len", 512),
    "--optimizer": ("Adam", "optimizer", "adamw"), "--lr": ("0.001", "lr", 0.001),
    "--scheduler": ("linear", "schedule", "linear"), "--min_lr_ratio": ("0.2", "min_lr_ratio", 0.2),
    "--activation_checkpointing": (None, "activation_checkpointing", True), "--weight_decay": ("0.1", "weight_decay", 0.1),
    "--warmup_steps": ("7", "warmup", 7), "--eval_every": ("5", "eval_every", 5), "--num_training_steps": ("99", "steps", 99),
    "--max_train_tokens": ("1M", "steps", 1_000_000 // (16 * 256)), "--save_every": ("6", "save_every", 6),
    "--save_dir": ("runs/a", "out", "runs/a"), "--dtype": ("float32", "dtype", "float32"), "--workers": ("8", "data_workers", 8),
    "--seed": ("1", "seed", 1), "--grad_clipping": ("1.0", "clip_norm", 1.0), "--peft_model": ("full", "method", "full"),
    "--lora_alpha": ("16", "alpha", 16.0), "--train_scaling": (None, "learned_scale", True), "--rank": ("64", "rank", 64),
    "--sp_ratio": ("0.01", "delta", 0.01),
}
REFUSED = {  # flag: a value, and words of what to write instead
    "--name": ("test", "--out runs/NAME"), "--tags": ("a,b", "leave it out"), "--single_gpu": (None, "--device cuda"),
    "--use_hf_model": (None, "leave it out"), "--lora_dropout": ("0.1", "drops nothing"), "--beta1": ("0.9", "adamw"),
}
VALUES = {  # of flags that are understood
    "--dtype bfloat16": "--matmul-precision bf16", "--dtype bf16": "float32", "--optimizer adafactor": "adam8bit",
    "--optimizer adam8bit_per_layer": "--optimizer adam8bit --per-layer", "--optimizer Adam --weight_decay 0.1": "adamw",
    "--scheduler cosine_restarts": "--method relora",
}
ALL = """--model_config --use_hf_model --continue_from --batch_size --gradient_accumulation --total_batch_size --max_length
    --optimizer --lr --scheduler --min_lr_ratio --activation_checkpointing --weight_decay --warmup_steps --eval_every
    --num_training_steps --max_train_tokens --save_every --save_dir --tags --dtype --workers --seed --name --grad_clipping
    --beta1 --single_gpu --peft_model --lora_alpha --lora_dropout --train_scaling --rank --sp_ratio"""
SCRIPT_60M = """--model_config 60m --lr 0.003 --peft_model sltrain --optimizer adamw --rank 128 --sp_ratio 0.03 --batch_size 256
    --total_batch_size 512 --num_training_steps 11000 --warmup_steps 1100 --weight_decay 0 --eval_every 1000
    --lora_alpha 32"""  # the published command, but for --dtype bfloat16


def words(flag, value):
    return [flag] if value is None else [flag, value]


def test_no_flag_of_the_public_script_is_unknown():
    assert sorted(ALL.split()) == sorted([*UNDERSTOOD, *REFUSED])
    assert sorted(REFUSED) == sorted(name for name, instead in config.NOT_HERE.items() if isinstance(instead, str))


@pytest.mark.parametrize("flag", UNDERSTOOD)
def test_public_flag_is_understood(flag):
    value, name, expected = UNDERSTOOD[flag]
    model = [] if flag in ("--model_config", "--continue_from") else ["--model_config", "60m"]
    settings, _ = parse([*model, *words(flag, value)])
    assert getattr(settings, name) == expected
    assert settings.total_batch_size is settings.max_train_tokens is None


@pytest.mark.parametrize(("line", "instead"), [
    *((" ".join(words(flag, value)), instead) for flag, (value, instead) in REFUSED.items()), *VALUES.items()])
def test_public_flag_without_a_like_here_says_what_to_write(refuse_training, line, instead):  # noqa: F811
    refuse_training(line.split(), line.split()[0].replace("--scheduler", "--schedule"), instead)


def test_published_command_is_2_batches_an_update():
    settings, _ = parse(SCRIPT_60M.split())
    assert (settings.batch_size, settings.accumulate, settings.steps, settings.warmup) == (256, 2, 11000, 1100)


def test_total_batch_is_that_of_all_processes(monkeypatch):
    """Rejects: a total for each process, which makes the batch as many times too large."""
    monkeypatch.setattr(config, "started", lambda: 4)
    assert parse(["--config", "60m", "--batch_size", "8", "--total_batch_size", "512"])[0].accumulate == 16
    settings, _ = parse(["--config", "60m", "--batch_size", "8", "--total_batch_size", "512", "--max_train_tokens", "1B"])
    assert settings.steps == 10**9 // (512 * 256)
    with pytest.raises(InputError, match=r"multiple of 32.* on 4 processes"):
        parse(["--config", "60m", "--batch_size", "8", "--total_batch_size", "24"])


@pytest.mark.parametrize(("word", "updates"), [("4096", 1), ("8191", 1), ("1M", 244), ("2B", 488_281)])
def test_tokens_to_train_on_are_whole_updates(word, updates):
    """Rejects: tokens over sequences, as GaLore's script has it: 256 times as many updates. And rounding up."""
    assert parse(["--config", "60m", "--max_train_tokens", word])[0].steps == updates


@pytest.mark.parametrize(("line", "said"), [
    ("--total_batch_size 6", "must be a multiple of 4"), ("--total_batch_size 2", "must be a multiple of 4"),
    ("--total_batch_size 0", "must be at least 1"), ("--total_batch_size 1.5", "invalid int value"),
    ("--total_batch_size 8 --accumulate 3", "it is --accumulate 2, not 3"),
    ("--max_train_tokens 1.5B", "must be a whole number"), ("--max_train_tokens M", "must be a whole number"),
    ("--max_train_tokens 1K", "must be a whole number"), ("--max_train_tokens -5", "must be at least 64"),
    ("--max_train_tokens 63", "must be at least 64"), ("--max_train_tokens 1000", "it is --steps 15, not 12"),
    ("--total_batch_size 8 --per-layer", "--accumulate 2"),
])
def test_sizes_that_do_not_fit(refuse_training, line, said):  # noqa: F811
    refuse_training(line.split(), said)


def test_sizes_agree_with_what_they_become():
    same = ["--config", "60m", "--accumulate", "4", "--steps", "61"]
    assert parse([*same, "--total_batch_size", "64", "--max_train_tokens", "1M"])[0] == parse(same)[0]


def test_run_by_total_batch_and_tokens_is_the_run_by_accumulate_and_steps(tmp_path):
    one = run_job(tmp_path, accumulate=2, steps=6, out=tmp_path / "one")
    two = run_job(tmp_path, total_batch_size=8, steps=None, max_train_tokens=6 * 8 * 16 + 5, out=tmp_path / "two")
    assert_same_run(one, two)


def test_resumed_run_goes_by_its_own_batches(tmp_path, capsys):
    """Rejects: the default batch in place of the run's; --max_train_tokens refused, though --steps is not."""
    run = run_job(tmp_path, accumulate=2, steps=3)
    refuse(capsys, train, ["--resume", run, "--total_batch_size", "16"], "it is --accumulate 4, not 2")
    refuse(capsys, train, ["--resume", run, "--max_train_tokens", "1024", "--steps", "9"], "it is --steps 8, not 9")
    assert resume(run, "--total_batch_size", "8", "--max_train_tokens", "1024") == 0
    assert len(read(run / "metrics.jsonl")) == 1024 // (8 * 16)


def test_run_that_may_be_resumed_or_begun(tmp_path):
    """--resume auto that begins goes by the flags, and by the run once there is one."""
    line = [*job(tmp_path, steps=None), "--resume=auto", "--total_batch_size=8"]
    for tokens, updates in (("512", 4), ("768", 6)):
        assert train.run_command(train.main, [*line, "--max_train_tokens", tokens]) == 0
        assert len(read(tmp_path / "run" / "metrics.jsonl")) == updates

"""One run of a comparison, in a process of its own."""

import os
import shutil
import time
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path

from minisl import checkpoint, files, kernels, metrics, train
from minisl.backend import keep_freed_memory
from minisl.data import load_corpus
from minisl.errors import NotSavedError, TrainingError


def begin_process():
    """What a process does before its first job: no progress bar, and freed memory is kept."""
    os.environ["TQDM_DISABLE"] = "1"
    keep_freed_memory()


def one_run(settings, run, keep_weights):
    """Train in this folder, or go on there; what came of it is in result.json, and returned. None: stopped by Ctrl-C, and saved.

    "status" is "done", or "diverged" where the loss was no number, and then there is no val_loss; "curve" has (tokens, val_loss,
    bits_per_byte) of each evaluation.
    """
    run = Path(run)
    settings.out, found, status, stop = str(run), None, "done", 0
    if checkpoint.folders(run):
        checkpoint.tidy(run)
        found = checkpoint.find(run)
        settings.steps = found.state["settings"]["steps"]
    else:
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir(parents=True)
    started = time.perf_counter()
    if not found or found.state["step"] < settings.steps:
        with (open(run / "train.log", "a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log),
              kernels.running(settings.backend, settings.threads, print, dtype=settings.dtype) as on):
            try:
                trainer = train.Trainer(settings, run, found, on=on, corpus=corpus(tuple(settings.data)))
                stop = trainer.train()
                trainer.finish()
            except NotSavedError:
                raise
            except TrainingError:
                status = "diverged"
    if stop:
        return None
    records = metrics.read(run / "metrics.jsonl")
    result = {"status": status, "steps": settings.steps, "seconds": time.perf_counter() - started,
              "curve": [[r["tokens"], r["val_loss"], r["bits_per_byte"]] for r in records if "val_loss" in r]}
    if status == "done":
        result |= {k: records[-1][k] for k in ("tokens", "val_loss", "perplexity", "bits_per_byte")}
    files.write_json(run / "result.json", result)
    if not keep_weights:
        for folder in checkpoint.folders(run):
            checkpoint.remove(folder)
    return result


@cache
def corpus(sources):
    """The text of these sources, read once a process."""
    return load_corpus(list(sources))

"""What a run leaves to look at when it ends: a figure, a text it wrote, and a table."""

import shlex
import sys

import numpy as np

from minisl import files
from minisl.backend import generator
from minisl.errors import InputError
from minisl.generate import generate, shown
from minisl.metrics import gpu_memory, peak_memory


def draw_loss(run, records, title):
    """RUN/loss.png, or a line on stderr where matplotlib is missing or the disk is full."""
    try:
        from minisl.plot import loss_figure

        with files.replacing(run / "loss.png") as [path]:
            loss_figure(path, records, title)
    except OSError as error:
        print(f"no loss.png: {error.strerror or error}", file=sys.stderr)
    except Exception as error:  # a matplotlib that is missing or broken must not cost the run
        why = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"no loss.png: matplotlib does not work here ({why})", file=sys.stderr)


def sample(model, tokenizer, seed):
    """A text that the model writes, or why there is none."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            return shown(tokenizer.decode_documents(generate(model, [tokenizer.end], 300, generator(seed, "sample"))))
    except InputError as error:
        return f"(none: {error})"


def show(run, model, xp, record, tokens_per_second, text, best):
    """Print what came of a run. record: the last of metrics.jsonl; best: step and val_loss of the best evaluation."""
    peak = peak_memory()
    gpu = [] if xp is np else [("GPU memory pool", f"{gpu_memory(xp) / 1e6:,.0f} MB")]
    rows = [("parameters", f"{model.num_parameters():,}"), ("steps", f"{record['step']:,}"), ("tokens", f"{record['tokens']:,}"),
            ("tokens/s", f"{tokens_per_second:,.0f}"), ("peak memory", f"{peak / 1e6:,.0f} MB" if peak else "not known here"),
            *gpu, ("training loss", f"{record['loss']:.4f}"), ("validation loss", f"{record['val_loss']:.4f}"),
            ("perplexity", f"{record['perplexity']:.2f}"), ("bits per byte", f"{record['bits_per_byte']:.4f}")]
    if best["step"] != record["step"]:
        rows.append(("best", f"{best['val_loss']:.4f} at {best['step']:,}"))
    print("\n" + "\n".join(f"  {name:16}{value:>16}" for name, value in rows))
    print(f"\nA sample:\n\n{text.strip()}\n\n{run} holds the checkpoints, loss.png and sample.txt. "
          f"More text: python -m minisl.generate {shlex.quote(str(run))} --prompt 'The '")

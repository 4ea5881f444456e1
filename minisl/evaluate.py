"""`python -m minisl.evaluate RUN`: a trained model's loss on held-out text."""

import math
import sys
from itertools import islice
from pathlib import Path

import numpy as np

from minisl import checkpoint
from minisl.autograd import no_grad, ops
from minisl.backend import DEVICES, IGNORE_LABEL, choose_device, read
from minisl.blas import restart_with_better_kernels
from minisl.command import Parser, run_command
from minisl.data import in_memory, load_documents, open_data, tokenize, validation_batches
from minisl.data.pieces import n_bytes as bytes_of
from minisl.data.tokenizers import lost_text
from minisl.errors import InputError


def evaluate(model, batches, n_bytes, end, group=None):
    """Loss over batches of (inputs, labels).

    n_bytes: length in UTF-8 of the text behind the labels; end: the id of the mark between documents; group: processes that share
    the batches out. Returns val_loss (nats per token, the mean over all tokens), perplexity = exp(val_loss), and
    bits_per_byte = nats of the text's tokens / ln 2 / n_bytes: the marks are no text. It does not depend on the tokenizer.
    Raises InputError where there is no text: no label, n_bytes of 0.
    """
    nats, mark_nats, count = 0.0, 0.0, 0
    mine = islice(batches, group.rank, None, group.size) if group else batches
    with no_grad():
        for inputs, labels in mine:
            logits, marks = model(inputs), np.where(labels == end, end, IGNORE_LABEL)
            here = read(*(ops.cross_entropy(logits, targets, reduction="sum").data for targets in (labels, marks)))
            nats, mark_nats = nats + here[0], mark_nats + here[1]
            count += int((labels != IGNORE_LABEL).sum())
    if group:
        nats, mark_nats, count = group.total(nats, mark_nats, count)
    if not count or not n_bytes > 0:
        raise InputError(f"nothing to evaluate: {count} labels, {n_bytes} bytes of text; batches can be gone through only once "
                         "where they are a generator")
    return {"val_loss": nats / count, "bits_per_byte": (nats - mark_nats) / math.log(2) / n_bytes,
            "perplexity": perplexity(nats / count)}


def perplexity(loss):
    """e^loss, or infinity where that is too large for a float."""
    return math.exp(loss) if loss < 700 else math.inf


def main(argv):
    parser = Parser(prog="python -m minisl.evaluate", description="Loss of a trained model on held-out text.")
    parser.add_argument("run", help="a folder that minisl.train wrote")
    parser.add_argument("--data", nargs="+", help="text files, folders, globs: all of it; a stream: what is held out of it (left "
                                                  "out: the run's held-out text)")
    parser.add_argument("--batch-size", type=int, help="sequences at a time (left out: as in training)")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="where to run")
    parser.add_argument("--keep-blas", action="store_true", help="do not start again where OpenBLAS has better kernels")
    args = parser.parse_args(argv)
    if args.batch_size is not None and args.batch_size < 1:
        raise InputError(f"--batch-size {args.batch_size}: must be at least 1")

    xp, _ = choose_device(args.device)
    found = checkpoint.find(args.run)
    model, tokenizer, settings = found.model().to(xp), found.tokenizer(), found.state["settings"]
    batch_size = args.batch_size or settings["batch_size"]
    if args.data and in_memory(args.data, settings["text_field"]):
        notes = []
        name, documents = " ".join(args.data), load_documents(args.data, notes)
        notes += lost_text(tokenizer, documents)
        batches = validation_batches(tokenize(tokenizer, documents), batch_size, settings["seq_len"])
        n_bytes = bytes_of(documents)
    else:
        same = {k: settings[k] for k in ("seq_len", "seed", "protocol", "text_field", "validation_documents")}
        same |= {"tokenizer": tokenizer, "vocab_size": found.config.vocab_size, "batch_size": batch_size}
        if args.data:
            data = open_data(args.data, **same)
        else:
            data, _ = checkpoint.open_data_of(found, Path(args.run), settings["data"], **same)
        name, batches, n_bytes, notes = data.name, data.validation(), data.validation_bytes, data.notes
    for line in notes:
        print(line, file=sys.stderr)
    result = evaluate(model, batches, n_bytes, tokenizer.end)
    print(f"{args.run}, step {found.state['step']}, on {name} ({n_bytes:,} bytes)")
    for name, value in result.items():
        print(f"{name:14} {value:.4f}")


if __name__ == "__main__":
    restart_with_better_kernels("minisl.evaluate")
    raise SystemExit(run_command(main))

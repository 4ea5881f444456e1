"""`python -m minisl.memory --config 60m`: what a training step holds in memory, by kind. Takes the flags of minisl.train."""

import sys

from minisl import kernels, methods, optim
from minisl.backend import generator
from minisl.command import run_command
from minisl.config import parse
from minisl.errors import InputError
from minisl.memory.measure import KINDS, measure
from minisl.metrics import peak_memory


def main(argv):
    settings, _ = parse(argv, prog="python -m minisl.memory", description="What a training step holds in memory, by kind.")
    if settings.device != "cpu":
        raise InputError(f"--device {settings.device}: only the CPU's arrays can be told apart by kind; minisl.train says at its "
                         "end what it took of the GPU")
    config = settings.model_config()
    config.vocab_size = config.vocab_size or 32000
    with kernels.running(settings.backend, settings.threads, lambda line: print(line, file=sys.stderr)) as on:
        model = methods.build_model(config, settings.method, settings.to_dict(), generator(settings.seed, "init"), settings.dtype)
        model.model.activation_checkpointing = settings.activation_checkpointing
        optimizer = optim.AdamW(model.named_parameters(), settings.lr)
        ids = generator(settings.seed, "data").integers(0, config.vocab_size, (settings.batch_size, settings.seq_len + 1))
        found = measure(model, optimizer, lambda: model.loss(ids[:, :-1], ids[:, 1:], 1 / ids[:, 1:].size))
    print(f"{settings.method}, {model.num_parameters():,} parameters, {settings.batch_size} x {settings.seq_len} tokens, {on}; "
          "at the peak:")
    for kind in (*KINDS, "peak"):
        print(f"  {kind if kind != 'peak' else 'all arrays':16}{found[kind] / 1e6:>12,.1f} MB")
    if (peak := peak_memory()) is not None:
        print(f"  {'process':16}{peak / 1e6:>12,.1f} MB resident at its peak, with Python, libraries and this measurement")


if __name__ == "__main__":
    sys.exit(run_command(main))

"""The small training job that the analyses run: bytes in, a LLaMA of two blocks, some hundred updates, seconds on a core."""

from dataclasses import dataclass

import numpy as np

from minisl.backend import generator
from minisl.data import Batches, load_corpus, make_tokenizer, tokenize, validation_batches
from minisl.errors import InputError
from minisl.evaluate import evaluate
from minisl.methods import Method, flags
from minisl.nn import Llama, LlamaConfig
from minisl.optim import Optimizer, learning_rate
from minisl.parallel import Workers

SHAPE = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2, "num_attention_heads": 4}
SETTINGS = {"rank": 16, "delta": 0.05, "alpha": 16.0, "learned_scale": False, "algorithm": "auto"}
MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass
class Text:
    """train and held_out: arrays of ids below vocab_size; end: the id of the mark between documents."""

    train: np.ndarray
    held_out: np.ndarray
    vocab_size: int = 257
    end: int = 0


def read_text(sources=("python-docs",), held_out=32_769):
    """A Text of bytes: what `minisl.train` would train on, and so many of the bytes it would hold out."""
    corpus = load_corpus(sources)
    tokenizer = make_tokenizer("bytes", [], 257)
    return Text(tokenize(tokenizer, corpus.train), tokenize(tokenizer, corpus.validation[::3])[:held_out], 257, tokenizer.end)


@dataclass
class Job:
    """A trained model and how it got there: losses (steps,) of its batches, val_losses (k,) after the updates checked (k,), in
    nats per byte."""

    model: Llama
    optimizer: Optimizer
    losses: np.ndarray
    checked: np.ndarray
    val_losses: np.ndarray

    @property
    def val_loss(self):
        return float(self.val_losses[-1])


def train(text, method="sltrain", *, steps=300, shape=SHAPE, lr=3e-3, seed=42, checks=8, start=None, rule=None,
          batch=16, length=64, parts=2, **options):
    """A Job, the same for the same arguments. Cosine schedule after a tenth of warm-up, as minisl.train.

    options: settings and flags of the method, where they are not SETTINGS or its defaults. start(model): changes the model before
    the first update. rule(array) -> Rule: moves every parameter, instead of the method's rules.
    checks: how often the validation loss is taken. parts: in how many parts a batch is computed, each on a core.
    """
    if unknown := options.keys() - SETTINGS.keys() - flags(method).keys():
        raise InputError(f"{min(unknown)}: no setting of {method}; allowed: {', '.join([*SETTINGS, *flags(method)])}")
    method = Method(method, SETTINGS | options)
    model = method.build(LlamaConfig(**shape, vocab_size=text.vocab_size), generator(seed, "init"))
    if start:
        start(model)
    optimizer = (Optimizer(model.named_parameters(), lr, lambda name, array: rule(array)) if rule else
                 method.optimizer(model, lr, seed=seed))
    batches, workers = Batches(text.train, batch, length, seed), Workers(parts)
    checked = np.unique(np.arange(1, checks + 1) * steps // checks)
    checked = checked[checked > 0]
    losses, val_losses = [], []

    def loss_of(inputs, labels):
        return model.loss(inputs, labels, 1 / (batch * length))

    with np.errstate(over="ignore", invalid="ignore"):  # some analyses make a run diverge
        for step in range(1, steps + 1):
            optimizer.lr = learning_rate(step, peak=lr, steps=steps, warmup=steps // 10)
            method.before_step(model, optimizer, step, steps, seed)
            losses.append(workers.backward(loss_of, *batches(step - 1)))
            optimizer.step()
            model.zero_grad()
            if step in checked:
                val_losses.append(validation_loss(model, text, length))
    return Job(model, optimizer, np.array(losses), checked, np.array(val_losses))


def validation_loss(model, text, length=64):
    """Nats per byte of the held-out text."""
    return evaluate(model, validation_batches(text.held_out, 32, length), 1, text.end)["val_loss"]


def matrices(model):
    """(path, layer) of the seven matrices of every block, such as ("model.layers.0.self_attn.q_proj", Linear)."""
    return [(path, layer) for path, layer in model.named_modules() if path.rpartition(".")[2] in MATRICES]

"""What a step of each method takes: bytes by kind, by formula and measured, and time."""

import statistics
import time

from minisl import files, kernels
from minisl.backend import generator
from minisl.errors import InputError
from minisl.memory.formula import all_held, estimate
from minisl.memory.measure import KINDS, measure
from minisl.methods import Method
from minisl.nn.config import read_json
from minisl.parallel import Workers


def weigh_all(entries, out, say, turns=3):
    """label -> {parameters, estimated, measured, tokens_per_second} of each entry; kept in weights.json. Parameters: the trained.

    Methods take turns, so that a slow minute of the machine hits them all; each has all cores.
    """
    path = out / "weights.json"
    found, speeds = (read_json(path) if path.exists() else {}), {}
    for label, entry in found.items():
        if (not isinstance(entry, dict) or entry.keys() != {"parameters", "estimated", "measured", "tokens_per_second"}
                or not all(isinstance(entry[k], dict) and entry[k].keys() == {*KINDS, "peak"}
                           and all(map(plausible, entry[k].values())) for k in ("estimated", "measured"))
                or type(entry["parameters"]) is not int or not plausible(entry["parameters"])
                or not plausible(entry["tokens_per_second"])):
            raise InputError(f"{path}: damaged at {label}; remove it and the steps are measured again")
    todo = [e for e in entries if e.label not in found]
    for turn in range(turns if todo else 0):
        for entry in todo:
            settings = entry.settings(1e-3, 0)
            say(f"a step of {entry.label}, turn {turn + 1} of {turns}")
            with kernels.running(settings.backend, settings.threads, say, dtype=settings.dtype):
                speeds.setdefault(entry.label, []).append(settings.batch_size * settings.seq_len / step_seconds(settings))
                if turn == 0:
                    found[entry.label] = weigh(settings)
    for label, values in speeds.items():
        found[label]["tokens_per_second"] = statistics.median(values)
    if todo:
        files.write_json(path, found)
    return found


def plausible(value):
    """Is it a number that can be counted, measured or drawn?"""
    return type(value) in (int, float) and 0 <= value < 1e18


def step_seconds(settings):
    """Seconds of one update in the middle of a job, on random tokens: the median over a second or more."""
    method, model, optimizer, ids = material(settings)
    workers, taken, step = Workers(settings.parts), [], settings.steps // 2
    while len(taken) < 5 or sum(taken) < 1:
        step, started = step + 1, time.perf_counter()
        method.before_step(model, optimizer, step, settings.steps, settings.seed)
        workers.backward(lambda inputs, labels: model.loss(inputs, labels, 1 / labels.size), ids[:, :-1], ids[:, 1:])
        optimizer.step()
        model.zero_grad()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[2:])


def weigh(settings):
    """Bytes by kind in the middle of a job, each when it is most, and "peak": estimated by formula, and of two real updates.

    The batch is computed in one part.
    """
    s, (method, model, optimizer, ids) = settings, material(settings)
    measured = measure(model, optimizer, lambda: model.loss(ids[:, :-1], ids[:, 1:], 1 / ids[:, 1:].size),
                       lambda step: method.before_step(model, optimizer, s.steps // 2 + step, s.steps, s.seed))
    estimated = estimate(method, s.model_config(), s.batch_size, s.seq_len, s.dtype, s.optimizer, 4, s.per_layer,
                         s.activation_checkpointing)
    trained = sum(sum(held.weights) for held in all_held(method, s.model_config()))
    return {"parameters": trained, "estimated": {kind: estimated[kind] for kind in (*KINDS, "peak")},
            "measured": {kind: measured["most"][kind] for kind in KINDS} | {"peak": measured["peak"]}}


def material(settings, weightless=False):
    """(method, model, optimizer, token ids) of a job; weightless: the model only has shapes."""
    config, method = settings.model_config(), Method(settings.method, settings.to_dict())
    model = method.build(config, None if weightless else generator(settings.seed, "init"), settings.dtype)
    model.model.activation_checkpointing = settings.activation_checkpointing
    optimizer = method.optimizer(model, settings.lr, settings.optimizer, settings.weight_decay, settings.seed)
    if settings.per_layer:
        optimizer.update_in_backward()
    ids = generator(settings.seed, "ids").integers(0, config.vocab_size, (settings.batch_size, settings.seq_len + 1))
    return method, model, optimizer, ids

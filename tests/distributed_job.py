"""A small training run of what mpiexec has started, as `tests/test_distributed.py` asks for it: `python distributed_job.py JSON`.

It goes the way of minisl.train: the same rows a step however many processes there are. Rank 0 writes what happened to "out".
"""

import json
import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from minisl import kernels, methods, optim
from minisl.backend import generator, to_numpy
from minisl.distributed import join
from minisl.errors import InputError
from minisl.nn import LlamaConfig
from minisl.parallel import Workers

CONFIG = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 40}
JOB = {"method": "full", "steps": 20, "rows": 8, "length": 12, "dtype": "float64", "shard": False, "per_layer": False, "clip": 0.5,
       "accumulate": 1, "bucket_bytes": 4000, "optimizer": "adamw", "device": "cpu", "parts": 1, "state": None, "first": 0,
       "options": {}, "config": {}, "fail": None, "out": None, "mutant": None}
OPTIONS = {"rank": 4, "delta": 0.1, "alpha": 8.0, "learned_scale": False, "algorithm": "factored"}


def batch(k, rows, length, vocab):
    ids = np.random.default_rng([7, k]).integers(0, vocab, (rows, length + 1))
    return ids[:, :-1], ids[:, 1:]


def run(group, job):
    """losses, norms and more of a run; only rank 0's is complete."""
    config = LlamaConfig(**CONFIG | job["config"])
    xp = np if job["device"] == "cpu" else sys.modules["cupy"]
    method = methods.Method(job["method"], OPTIONS | job["options"])
    model = method.build(config, generator(1, "init"), job["dtype"]).to(xp)
    optimizer = method.optimizer(model, 1e-2, job["optimizer"])
    exchange = group.exchange(model.named_parameters(), job["shard"], job["per_layer"], job["bucket_bytes"])
    if job["per_layer"]:
        optimizer.update_in_backward()
    if job["state"]:
        with np.load(job["state"]) as file:
            arrays = dict(file)
        model.load_state_dict({k[2:]: a for k, a in arrays.items() if k[0] == "w"})
        optimizer.load_state_dict(exchange.own_part({k[2:]: a for k, a in arrays.items() if k[0] == "o"}))
    workers, losses, norms, gradients, log = Workers(job["parts"]), [], [], [], []
    tokens = job["rows"] * job["accumulate"] * job["length"]
    for step in range(job["first"], job["steps"]):
        optimizer.lr = 1e-2
        method.before_step(model, optimizer, step + 1, job["steps"], 3)
        loss = 0.0
        for k in range(job["accumulate"]):
            if k == job["accumulate"] - 1:
                exchange.arm()
            rows = batch(step * job["accumulate"] + k, job["rows"], job["length"], config.vocab_size)
            inputs, labels = (xp.asarray(np.array_split(a, group.size)[group.rank]) for a in rows)
            loss += workers.backward(lambda i, l: model.loss(i, l, 1 / tokens), inputs, labels)
            if step == 3 and k == 0:
                fail(job["fail"], group, model)
        exchange.finish()
        if job["clip"] and not job["per_layer"]:
            norm = optim.clip_grad_norm(model.parameters(), job["clip"], exchange.over_all)
        else:
            norm = optimizer.taken_norm() if job["per_layer"] else optim.grad_norm(model.parameters(), exchange.over_all)
        gradients.append({n: to_numpy(p.grad).tolist() for n, p in model.named_parameters() if p.grad is not None and step < 2})
        optimizer.step()
        exchange.share_weights()
        model.zero_grad()
        losses.append(group.total(loss)[0])
        norms.append(float(norm))
        log.append([[b.opened, b.started, b.done] for b in exchange.buckets])
    group.check_same(model)
    state = exchange.gather_state(optimizer.state_dict())
    held = group.gather(sum(a.nbytes for a in optimizer.arrays()))
    with_gradient = group.gather([sorted(g) for g in gradients[:2]])
    if group.rank == 0 and job["out"]:
        np.savez(job["out"] + ".npz", **{f"w.{k}": a for k, a in model.state_dict().items()},
                 **{f"o.{k}": a for k, a in state.items()})
    return {"losses": losses, "norms": norms, "gradients": gradients[:2], "log": log, "backward": getattr(exchange, "backward", None),
            "payload": exchange.payload, "bytes": exchange.bytes, "held": held, "with_gradient": with_gradient, "size": group.size,
            "threads": group.threads(), "parameters": sum(p.size for p in model.parameters())}


def fail(how, group, model):
    """What can go wrong in one process while the others go on."""
    if how == "drift" and group.rank == group.size - 1:
        model.model.norm.weight.data[0] += 1e-9
    if group.rank == 1:
        if how == "exception":
            raise ZeroDivisionError("nothing was divided")
        if how == "input":
            raise InputError("no such weights")
        if how == "exit":
            os._exit(3)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "term":
            signal.signal(signal.SIGTERM, lambda *_: None)
    elif how in ("kill", "exit"):
        signal.signal(signal.SIGTERM, lambda *_: None)  # as a trainer that would finish its step first


def read_flags(job, group):
    if job["fail"] == "flags":
        raise InputError("--lr -1: must be positive")
    if job["fail"] == "flags of one" and group.rank == 1:
        raise InputError("corpus.txt: no such file")
    if job["fail"] == "disk of one" and group.rank == 1:
        raise OSError("No space left on device")


def main(job, mutant=nullcontext):
    group = join()
    with group.guard():
        group.together(read_flags, job, group)
        group = join(job["device"])
        print(f"speaking: {group.rank}")
        with kernels.using("numpy"), mutant():
            found = run(group, job)
        if group.rank == 0 and job["out"]:
            Path(job["out"]).write_text(json.dumps(found))


if __name__ == "__main__":
    job = JOB | json.loads(sys.argv[1])
    if job["device"] == "cuda":
        from gpu import fake_cupy

        with fake_cupy():
            main(job)
    else:
        main(job)

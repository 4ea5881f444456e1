"""What mpiexec starts for `tests/test_distributed.py`: `python distributed_job.py checks|mutants|run [JSON]`.

A small training run that goes the way of minisl.train: the same rows a step however many processes there are. A check compares
it with the same run of this process alone, or looks at one promise of `minisl.distributed`; all processes make it together.
"""

import json
import os
import signal
import sys
from contextlib import nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mutation import mutated

from minisl import Tensor, distributed, exchange, kernels, methods, optim
from minisl.backend import generator
from minisl.distributed import AgreedError, Alone, join
from minisl.errors import InputError
from minisl.exchange import Bucket, Exchange, owners
from minisl.nn import LlamaConfig
from minisl.parallel import Workers, cores

CONFIG = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 40}
OPTIONS = {"rank": 4, "delta": 0.1, "alpha": 8.0, "learned_scale": False, "algorithm": "factored"}
JOB = {"method": "full", "steps": 6, "rows": 8, "length": 12, "dtype": "float64", "shard": False, "per_layer": False,
       "clip": 0.5, "accumulate": 1, "bucket_bytes": 6000, "device": "cpu", "gpus": 4, "parts": 1, "options": {}, "fail": None}


def run(group, job, saved=None, first=0):
    """A run, or the rest of one that was saved after `first` steps, and what it left."""
    job = SimpleNamespace(**JOB | job)
    xp = np if job.device == "cpu" else sys.modules["cupy"]
    method = methods.Method(job.method, OPTIONS | job.options)
    model = method.build(LlamaConfig(**CONFIG), generator(1, "init"), job.dtype).to(xp)
    optimizer = method.optimizer(model, 1e-2)
    exchange = group.exchange(model.named_parameters(), job.shard, job.per_layer, job.bucket_bytes)
    if job.per_layer:
        optimizer.update_in_backward()
    if saved:
        model.load_state_dict(saved.weights)
        optimizer.load_state_dict(exchange.own_part(saved.state))
    workers, losses, norms, payloads, with_gradient = Workers(job.parts), [], [], [], []
    tokens = job.rows * job.accumulate * job.length
    for step in range(first, job.steps):
        optimizer.lr = 1e-2
        method.before_step(model, optimizer, step + 1, job.steps, 3)
        loss = 0.0
        for k in range(job.accumulate):
            ids = np.random.default_rng([7, step, k]).integers(0, CONFIG["vocab_size"], (job.rows, job.length + 1))
            inputs, labels = (xp.asarray(np.array_split(a, group.size)[group.rank]) for a in (ids[:, :-1], ids[:, 1:]))
            if k == job.accumulate - 1:
                exchange.arm()
            loss += workers.backward(lambda i, l: model.loss(i, l, 1 / tokens), inputs, labels)
            if step == 3:
                fail(job.fail, group, model)
        exchange.finish()
        if job.clip and not job.per_layer:
            norm = optim.clip_grad_norm(model.parameters(), job.clip, exchange.over_all)
        else:
            norm = optimizer.taken_norm() if job.per_layer else optim.grad_norm(model.parameters(), exchange.over_all)
        with_gradient.append([name for name, p in model.named_parameters() if p.grad is not None])
        payloads.append(sum(p.grad.nbytes for p in model.parameters() if p.grad is not None))
        optimizer.step()
        exchange.share_weights()
        model.zero_grad()
        losses.append(group.total(loss)[0])
        norms.append(float(norm))
    group.check_same(model)
    return SimpleNamespace(losses=losses, norms=norms, with_gradient=with_gradient, payloads=payloads, exchange=exchange,
                           model=model, weights=model.state_dict(), held=sum(a.nbytes for a in optimizer.arrays()),
                           state=exchange.gather_state(optimizer.state_dict()))


def fail(how, group, model):
    """What can go wrong in one process while the others go on."""
    if how == "drift" and group.rank == group.size - 1:
        model.model.norm.weight.data[0] += 1e-9
    if how in ("kill", "exit"):
        signal.signal(signal.SIGTERM, lambda *_: None)  # as a trainer that would finish its step first
    if group.rank == 1:
        if how == "exception":
            raise ZeroDivisionError("nothing was divided")
        if how == "input":
            raise InputError("no such weights")
        if how == "exit":
            os._exit(3)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)


# Checks


def same(a, b, tolerance, what):
    assert np.shape(a) == np.shape(b), what
    assert np.allclose(a, b, rtol=tolerance, atol=tolerance), f"{what}: off by {np.abs(np.subtract(a, b, dtype=float)).max()}"


ALONE = {}


def as_alone(group, job, tolerance=1e-12):
    """(run by all, run by one): the same losses, norms, weights and optimizer state."""
    mine, key = run(group, job), json.dumps({**job, "shard": False})
    alone = ALONE[key] = ALONE.get(key) or run(Alone(), job)
    same(mine.losses, alone.losses, tolerance, "losses")
    same(mine.norms, alone.norms, max(tolerance, 1e-11), "gradient norms")
    for name, array in alone.weights.items():
        same(mine.weights[name], array, 50 * tolerance, name)
    if group.rank == 0:
        assert mine.state.keys() == alone.state.keys(), "names in the optimizer's state"
        for name, array in alone.state.items():
            same(mine.state[name], array, 50 * tolerance, name)
    else:
        assert mine.state is None, "rank 0 alone has the state"
    return mine, alone


def check_full(group):
    mine, alone = as_alone(group, {"clip": 0})
    n, total = group.size, alone.payloads[-1]
    assert mine.payloads == alone.payloads
    assert mine.exchange.payload == total
    assert mine.exchange.bytes == 2 * (n - 1) / n * total
    sizes = [sum(p.data.nbytes for p in b.items) for b in mine.exchange.buckets]
    assert len(sizes) > 3
    assert min(sizes[:-1]) >= JOB["bucket_bytes"]
    assert sum(sizes) == total


def check_sltrain_float32(group):
    mine, _ = as_alone(group, {"method": "sltrain", "dtype": "float32", "steps": 20}, 1e-6)
    assert mine.exchange.payload < run(group, {"dtype": "float32", "steps": 1}).exchange.payload


def check_clipped(group):
    mine, _ = as_alone(group, {"clip": 0.1})
    assert min(mine.norms) > 0.1


def check_accumulated(group):
    as_alone(group, {"accumulate": 3})


def check_parts(group):
    as_alone(group, {"method": "sltrain", "parts": 2})


def check_frozen_by_a_method(group):
    """Their set changes from step to step, and who is frozen has no gradient at all."""
    for job in ({"method": "relora", "options": {"every": 3, "warm_start": 0.3}}, {"method": "drop_muon", "steps": 6}):
        mine, alone = as_alone(group, job)
        assert mine.with_gradient == alone.with_gradient
        assert len({len(names) for names in mine.with_gradient}) > 1


def check_per_layer(group):
    mine, _ = as_alone(group, {"per_layer": True})
    assert not mine.exchange.buckets
    refused(InputError, "not with --per-layer", lambda: group.exchange([], shard=True, per_layer=True))


def check_sharded(group):
    for job in ({}, {"accumulate": 2, "clip": 0.1}, {"method": "relora", "options": {"every": 3, "warm_start": 0.3}}):
        mine, alone = as_alone(group, {"shard": True, **job})
        held = group.control.allgather(mine.held)
        assert sum(held) == alone.held
        assert max(held) < 1.2 * alone.held / group.size or "method" in job
        for step, names in enumerate(zip(*group.control.allgather(mine.with_gradient))):
            assert sorted(chain(*names)) == sorted(alone.with_gradient[step]), "each gradient is at one process"


def check_resumed_by_others(group):
    """What all have saved, one goes on with, and what one has saved, all."""
    for job in ({"shard": True}, {"shard": True, "method": "sltrain"}):
        half, whole = run(group, {**job, "steps": 3}), run(Alone(), job)
        half.state = group.broadcast(half.state)
        for saved in (half, run(Alone(), {**job, "steps": 3})):
            for other in (group, Alone()):
                rest = run(other, job, saved, 3)
                same(rest.losses, whole.losses[3:], 1e-12, "losses")
                same(rest.norms, whole.norms[3:], 1e-11, "norms")
                if other is group:
                    assert sum(group.control.allgather(rest.held)) == whole.held


def check_overlap(group):
    """The first sum is on its way before the backward pass has ended; none is before its last gradient has come."""
    exchange = run(group, {"steps": 3}).exchange
    first, last = exchange.backward
    assert first <= exchange.buckets[0].started < last
    assert sum(b.started < last for b in exchange.buckets) >= len(exchange.buckets) - 1
    for bucket in exchange.buckets:
        assert bucket.opened <= bucket.started <= bucket.done
    assert [b.started for b in exchange.buckets] == sorted(b.started for b in exchange.buckets)


def check_complete_when_started(group):
    """A parameter that is used twice, early and late in the pass: what is sent is the sum of both."""
    w, x = (Tensor(np.full(4, value), requires_grad=True) for value in (2.0, 3.0))
    for limit in (8, 1000):  # one by one, or neither before `finish`
        exchange = group.exchange([("w", w), ("x", x)], bucket_bytes=limit)
        for _ in range(2):
            exchange.arm()
            (((w * x) * w).sum() * (1.0 + group.rank)).backward()
            exchange.finish()
            n = group.size * (group.size + 1) / 2
            assert [(w.grad == 12 * n).all(), (x.grad == 4 * n).all()] == [True, True]
            for leaf in (w, x):
                leaf.zero_grad()
        w._hooks.clear(), x._hooks.clear()


def check_turned_gradients(group):
    """A gradient that does not lie in memory row by row."""
    w, right = Tensor(np.ones((2, 3, 4)), requires_grad=True), np.arange(24.0).reshape(2, 3, 4)
    for per_layer in (False, True):
        exchange = group.exchange([("w", w)], per_layer=per_layer)
        exchange.arm()
        w.accumulate(right.transpose(2, 0, 1).copy().transpose(1, 2, 0))
        exchange.finish()
        assert (w.grad == group.size * right).all()
        w.zero_grad()
        w._hooks.clear()


def check_order(group):
    """Gradients that come in another order in one process are noticed by all, before they are used."""
    a, b = (Tensor(np.ones(3), requires_grad=True) for _ in range(2))
    exchange = group.exchange([("a", a), ("b", b)])
    exchange.arm()
    first, second = (a, b) if group.rank < group.size - 1 else (b, a)
    ((first * 1.0).sum() + (second * 2.0).sum()).backward()
    refused(RuntimeError, f"process {group.size - 1} made its gradients in another order", exchange.finish)


def check_twice(group):
    a = Tensor(np.ones(3), requires_grad=True)
    exchange = group.exchange([("a", a)])
    exchange.arm()
    a.sum().backward()
    refused(RuntimeError, "the gradient of a came twice", lambda: a.sum().backward())


def check_drift(group):
    refused(AgreedError, f"those of process {group.size - 1} of {group.size} are not those of process 0",
            lambda: run(group, {"fail": "drift"}))


def check_words(group):
    n = group.size
    assert group.total(1, 2.5, group.rank == n - 1) == [n, 2.5 * n, 1.0]
    assert group.broadcast({"rank": group.rank}) == {"rank": 0}
    assert group.gather(group.rank) == (list(range(n)) if group.rank == 0 else None)
    assert (group.local_rank, group.local_size, n) == (group.rank, n, distributed.started())
    assert group.threads() == max(1, cores() // n)
    arrays = {f"{group.rank}.{k}": np.full(shape, group.rank + 1, dtype) for k, (shape, dtype) in enumerate(
        (((), np.int64), ((2, 3), np.uint8), ((0, 2), np.float32), ((5,), np.float64), ((3, 2), bool)))}
    found = group.gather_arrays(arrays)
    if group.rank == 0:
        assert list(found) == [f"{r}.{k}" for r in range(n) for k in range(5)]
        for name, array in found.items():
            like = arrays["0" + name[1:]]
            assert (array.shape, array.dtype) == (like.shape, like.dtype)
            assert (array == like.dtype.type(int(name[0]) + 1)).all()


def check_together(group):
    def wrong(who, error):
        if group.rank in who:
            raise error
        return "done"

    everybody = range(group.size)
    found = [outcome(group.together, wrong, *arguments) for arguments in (
        ([], 0), ([1], InputError("bad")), ([0], OSError("full")), (everybody, InputError("bad")))]
    found += [outcome(group.first, lambda: group.rank + 10), outcome(group.first, wrong, everybody, OSError("full")),
              outcome(group.first, sys.exit), outcome(group.together, group.first, wrong, everybody, InputError("bad"))]
    n = group.size
    assert found == ["done", (f"process 1 of {n}: bad", 2), (f"process 0 of {n}: full", 1), ("bad", 2), 10, ("full", 1), ("", 0),
                     ("bad", 2)]


def outcome(function, *arguments):
    """What it returns, or the text and code of its AgreedError. What fails here in one process only is noticed when all calls
    have been made, so that no other waits for it."""
    try:
        return function(*arguments)
    except AgreedError as error:
        return str(error), error.code
    except InputError as error:
        return error


def check_owners(group):
    sizes = {"a": 5, "b": 95, "c": 40, "d": 45, "e": 5, "f": 5}
    held = owners(sizes, 2)
    assert [sum(sizes[name] for name in sizes if held[name] == k) for k in range(2)] == [100, 95]
    assert owners(dict(reversed(sizes.items())), 2) == held


def refused(kind, words, call):
    with pytest.raises(kind) as raised:
        call()
    assert words in str(raised.value), str(raised.value)


CHECKS = {name: check for name, check in globals().items() if name.startswith("check_")}


# Wrong implementations. Sums of these begin when they are waited for, so that nothing is right by luck of the moment.


class Late(distributed.MPI):
    def start_sum(self, flat, owner=None):
        here = self.library.IN_PLACE
        if owner is None:
            call = partial(self.gradients.Allreduce, here, flat)
        else:
            call = partial(self.gradients.Reduce, *((here, flat) if self.rank == owner else (flat, None)), root=owner)
        return SimpleNamespace(Test=lambda: False, Wait=call)

    def start_broadcast(self, flat, owner):
        return SimpleNamespace(Wait=partial(self.gradients.Bcast, flat, root=owner))


MUTANTS = [  # and the check that must notice
    (run, "1 / tokens", "1 / tokens / group.size", check_full),
    (run, "1 / tokens", "group.size / tokens", check_full),
    (Exchange.take, "if bucket.nbytes >= self.limit:", "if False:", check_full),
    (Exchange.take, "if bucket.nbytes >= self.limit:", "if True:", check_full),
    (Exchange.take, "bucket.add(p)", "bucket.add(p) if not bucket.items else None", check_full),
    (Exchange.take, "if not self.armed:", "if False:", check_accumulated),
    (Exchange.take, "self.owner.get(name)", "None", check_sharded),
    (Exchange.take, "if name in self.seen:", "if False:", check_twice),
    (Exchange.take, "self.group.start_sum(p.grad).Wait()", "self.group.start_sum(p.grad)", check_per_layer),
    (Exchange.take, "array_module(p.grad).ascontiguousarray(p.grad)", "p.grad", check_turned_gradients),
    (Exchange.take, "self.order = zlib.crc32(name.encode(), self.order)", "self.order += zlib.crc32(name.encode())", check_order),
    (Exchange.arm, "self.buckets, self.open", "_, self.open", check_full),
    (Exchange.arm, "self.payload, self.buckets", "_, self.buckets", check_full),
    (Exchange.start, "if bucket.owner in (None, self.group.rank) else None", "", check_sharded),
    (Exchange.start, "p.grad = piece if bucket.owner in (None, self.group.rank) else None", "pass", check_full),
    (Exchange.start, "for p in bucket.items]", "for p in reversed(bucket.items)]", check_full),
    (Exchange.start, "self.open.pop(key)", "self.open[key]", check_full),
    (Exchange.finish, "for key in list(self.open):", "for key in ():", check_complete_when_started),
    (Exchange.finish, "bucket.wait()", "pass", check_full),
    (Exchange.finish, "self.armed = False",
     "self.armed = [setattr(p, 'grad', p.data * 0) for p in self.parameters.values() if p.grad is None] and False",
     check_frozen_by_a_method),
    (Exchange.finish, "is not None:", "is False:", check_order),
    (Exchange.finish, "2 * (self.group.size - 1)", "(self.group.size - 1)", check_full),
    (Exchange.share_weights, "p.data[...] = piece", "pass", check_sharded),
    (Exchange.share_weights, "done.owner != self.group.rank", "done.owner == self.group.rank", check_sharded),
    (Exchange.share_weights, "for p in bucket.items]", "for p in reversed(bucket.items)]", check_sharded),
    (Exchange.share_weights, "request.Wait()", "pass", check_sharded),
    (Exchange.over_all, "self.group.total(square_sum)[0] if self.owner else square_sum", "square_sum", check_sharded),
    (Exchange.over_all, " if self.owner else square_sum", "", check_full),
    (Exchange.own_part, "not self.owner or", "True or", check_resumed_by_others),
    (Exchange.gather_state, "None if self.group.rank else state", "state", check_full),
    (Bucket.views, "begin += p.size", "begin += 1", check_full),
    (exchange.owners, "-sizes[name]", "sizes[name]", check_owners),
    (exchange.owners, "key=lambda name: (-sizes[name], name)", "key=lambda name: -sizes[name]", check_owners),
    (exchange.owners, "held[found[name]] += sizes[name]", "held[found[name]] += 1", check_owners),
    (distributed.MPI.total, "self.control.Allreduce(self.library.IN_PLACE, values)", "pass", check_words),
    (distributed.MPI.check_same, "if crc != usual", "if False", check_drift),
    (distributed.MPI.check_same, "crc = zlib.crc32(np", "zlib.crc32(np", check_drift),
    (distributed.MPI.together, "self.control.allgather(failed)", "[failed]", check_together),
    (distributed.MPI.together, "len(set(answers)) == 1", "True", check_together),
    (distributed.MPI.first, "if failed:", "if failed and self.rank:", check_together),
    (distributed.MPI.threads, "self.share", "cores()", check_words),
]


def rejected(check, group):
    """Does a check fail, in any process?"""
    return any(group.control.allgather(failure(check, group)))


def failure(check, group):
    try:
        check(group)
    except (Exception, pytest.fail.Exception) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main(what, job):
    group = join()
    with group.guard():
        group.together(read_flags, job.get("fail"), group)
        group = join(job.get("device", "cpu"))
        print("rank", group.rank, "speaks")
        with kernels.using("numpy") if job.get("device") != "cuda" else nullcontext():
            if what == "checks":
                found = {name: group.control.allgather(failure(CHECKS[name], group)) for name in job["checks"]}
            elif what == "mutants":
                group = Late(group.library)
                found = {"none": any(rejected(check, group) for check in dict.fromkeys(check for *_, check in MUTANTS))}
                for i, (*mutant, check) in enumerate(MUTANTS):
                    with mutated(*mutant):
                        found[str(i)] = rejected(check, group)
            else:
                found = vars(run(group, job))
                found = {k: found[k] for k in ("losses", "norms", "held")} | {"payload": found["exchange"].payload}
        if group.rank == 0:
            Path(job["out"]).write_text(json.dumps(found))


def read_flags(how, group):
    if how == "flags":
        raise InputError("--lr -1: must be positive")
    if how == "help":
        group.first(lambda: print("usage: ...") or sys.exit())
    if how == "flags of one" and group.rank == 1:
        raise InputError("corpus.txt: no such file")


if __name__ == "__main__":
    job = json.loads(sys.argv[2])
    if job.get("device") == "cuda":
        from gpu import fake_cupy

        with fake_cupy() as cupy:
            cupy.cuda.runtime.getDeviceCount = lambda: (JOB | job)["gpus"]
            main(sys.argv[1], job)
    else:
        main(sys.argv[1], job)

"""One update made by 1, 2 and 4 processes of this machine: is it the same, what is sent, when, and does a simple model know how
long it takes?

    time of a step = compute + sum over buckets of (latency + bytes / bandwidth)

compute: what one process needs for its rows, times N / cores where N processes share fewer cores. latency and bandwidth: of a
sum over N processes with nothing else going on, measured here. On this machine the cores that compute also move the bytes, so
what overlaps is no time saved, and the two are added. Where a network card or a GPU's copy engine moves them, a step takes as
long as the larger of the two.

For many machines on paper, a ring: each of N processes sends 2 (N-1)/N of the gradients' bytes, half of it to add up, half to
tell the sums.

`mpiexec -n N python -m minisl.bench.distributed FILE` is what `bench` starts; rank 0 writes FILE.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from minisl import kernels, methods, optim
from minisl.backend import keep_freed_memory
from minisl.distributed import join
from minisl.errors import InputError
from minisl.memory.formula import kept
from minisl.memory.paper import RANKS, method_of, model_of
from minisl.nn import LlamaConfig
from minisl.parallel import Workers, cores

PROCESSES = (1, 2, 4)
METHODS = ("full", "sltrain")
SAME = LlamaConfig(32, 88, 2, 2, vocab_size=256)  # of 20 steps with equal losses
TIMED = LlamaConfig(256, 688, 4, 4, vocab_size=1024)
ROWS, LENGTH, TURNS, STEPS = 4, 64, 7, 20  # rows of a process in a timed step
SIZES = (1, 1 << 12, 1 << 16, 1 << 18, 1 << 20)  # numbers in a sum whose time is taken
TOLERANCE = {"float64": 1e-12, "float32": 1e-6}
BATCH, RATE, NETWORKS = 512 * 256, 1e14, (1.25e9, 25e9)  # on paper: tokens of an update, FLOP/s of a GPU, bytes/s


# What each process does


class Trainer:
    """The step of minisl.train, in one of `group`'s processes."""

    def __init__(self, group, config, method, rows, length, dtype="float32"):
        options = {"rank": config.hidden_size // 4, "delta": 0.03, "alpha": 16.0, "learned_scale": False, "algorithm": "auto"}
        self.group, self.rows, self.length = group, rows, length
        self.model = methods.build_model(config, method, options, np.random.default_rng(0), dtype)
        self.optimizer, self.workers = optim.AdamW(self.model.named_parameters(), 1e-3), Workers(1)
        self.exchange = group.exchange(self.model.named_parameters())

    def step(self, k, silent=False):
        """The loss of step k, and when (seconds) it began, its backward pass began and ended, and all sums were there. silent:
        without telling the others anything."""
        ids = np.random.default_rng([1, k]).integers(0, self.model.config.vocab_size, (self.rows, self.length + 1))
        mine = np.array_split(ids, self.group.size)[self.group.rank]
        scale, began = 1 / (self.rows * self.length), time.perf_counter()
        if not silent:
            self.exchange.arm()
        loss = self.workers.backward(lambda i, l: self.model.loss(i, l, scale), mine[:, :-1].copy(), mine[:, 1:].copy())
        if not silent:
            self.exchange.finish()
        moments = [began, *(self.exchange.backward or [began, began]), time.perf_counter()]
        optim.grad_norm(self.model.parameters())
        self.optimizer.step()
        self.model.zero_grad()
        return loss, moments


def same_losses(group):
    """method -> dtype -> losses of the first steps; 8 rows however many processes there are."""
    found = {}
    for method in METHODS:
        for dtype in TOLERANCE:
            trainer = Trainer(group, SAME, method, 8, 32, dtype)
            found.setdefault(method, {})[dtype] = [group.total(trainer.step(k)[0])[0] for k in range(STEPS)]
    return found


def timed_steps(group):
    """method -> seconds of steps with and without exchange, in turn; bytes; the last step's timeline of each process."""
    found = {}
    for method in METHODS:
        trainer = Trainer(group, TIMED, method, ROWS * group.size, LENGTH)
        seconds = {"talking": [], "silent": []}
        for turn in range(TURNS + 1):
            for how, taken in seconds.items():
                group.barrier()
                start = time.perf_counter()
                _, moments = trainer.step(turn, how == "silent")
                group.barrier()  # the slowest decides
                taken.append(time.perf_counter() - start)
                if how == "talking":
                    buckets = [[b.opened, b.started, b.done, b.nbytes] for b in trainer.exchange.buckets]
                    timeline = {"moments": moments, "buckets": buckets}
        found[method] = {"seconds": {how: taken[1:] for how, taken in seconds.items()}, "payload": trainer.exchange.payload,
                         "sent": trainer.exchange.bytes, "parameters": trainer.model.num_parameters(),
                         "timeline": group.gather(timeline)}
    return found


def timed_sums(group):
    """[[bytes, seconds], ...] of sums over all processes with nothing beside them."""
    found = []
    for size in SIZES if group.size > 1 else ():
        array, seconds = np.ones(size, np.float32), []
        for _ in range(12):
            group.barrier()
            start = time.perf_counter()
            group.start_sum(array).Wait()
            seconds.append(time.perf_counter() - start)
            array[:] = 1
        found.append([array.nbytes, statistics.median(seconds[2:])])
    return found


def child(path):
    keep_freed_memory()
    group = join()
    with group.guard(), kernels.running("auto", 1):
        found = {"same": same_losses(group), "sums": timed_sums(group), "steps": timed_steps(group)}
        if group.rank == 0:
            Path(path).write_text(json.dumps(found))


# What is asked of them


def mpiexec():
    """The mpiexec beside this Python, or else on the path. Raises InputError where there is none, or no mpi4py."""
    try:
        import mpi4py  # noqa: F401
    except ImportError:
        raise InputError("--only distributed: mpi4py is not installed; pip install 'minisl[mpi]'") from None
    found = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if not found:
        raise InputError("--only distributed: there is no mpiexec; pip install 'minisl[mpi]'")
    return found


def asked(n):
    """What n processes find."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        done = subprocess.run([mpiexec(), "-n", str(n), sys.executable, "-m", "minisl.bench.distributed", str(path)], text=True,
                              capture_output=True, env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"})
        if done.returncode:
            raise OSError(f"mpiexec -n {n} ended with exit code {done.returncode}: {done.stderr.strip()[-500:]}")
        return json.loads(path.read_text())


def latency_and_bandwidth(sums):
    """(seconds, bytes per second) with seconds + bytes / bandwidth through the smallest sum and the largest."""
    (least, quick), (most, slow) = sums[0], sums[-1]
    bandwidth = (most - least) / (slow - quick)
    return max(0.0, quick - least / bandwidth), bandwidth


def modelled(alone, n, buckets, sums, machine_cores):
    """(seconds of compute, seconds of sums) of a step of n processes; alone: the step of one. buckets: their bytes."""
    compute = alone * max(1, n / machine_cores)
    if n == 1:
        return compute, 0.0
    latency, bandwidth = latency_and_bandwidth(sums)
    return compute, sum(latency + nbytes / bandwidth for nbytes in buckets)


def gradient_bytes(method, size):
    """Bytes of one update's float32 gradients at a size of the paper: as many as trained weights have."""
    return kept(method_of(method, size), model_of(size), "float32")["weights"]


def on_paper(size, method, n, bandwidth):
    """(seconds of compute, seconds of sums over a ring) of an update of BATCH tokens by n GPUs; 6 operations for each token and
    weight of the dense model. SLTrain by Algorithm 1, which on each GPU adds 8 r for each element of its matrices: W is built
    twice, dB and dA are taken from dW."""
    c, dense = model_of(size), gradient_bytes("full", size) / 4
    elements = c.num_hidden_layers * c.hidden_size * (4 * c.hidden_size + 3 * c.intermediate_size)
    own = 8 * RANKS[size] * elements if method == "sltrain" else 0
    return (6 * dense * BATCH / n + own) / RATE, 2 * (n - 1) / n * gradient_bytes(method, size) / bandwidth


def bench(machine, say):
    found = {n: asked(n) for n in PROCESSES}
    one, rows, here = found[1], [], cores()
    say(f"Losses of {STEPS} steps of 8 rows by N processes, the largest difference to one process's, relative")
    for method in METHODS:
        for dtype, tolerance in TOLERANCE.items():
            off = {n: max(abs(a - b) / abs(b) for a, b in zip(found[n]["same"][method][dtype], one["same"][method][dtype]))
                   for n in PROCESSES[1:]}
            equal = all(value <= tolerance for value in off.values())
            rows.append({"what": "same", "method": method, "dtype": dtype, "off": off, "equal": equal})
            say(f"  {method:10}{dtype:10}" + "".join(f"  N = {n}: {value:8.1e}" for n, value in off.items())
                + f"   {'equal' if equal else 'DIFFERENT'} (allowed {tolerance:g})")

    say(f"\nA step of {ROWS} x {LENGTH} tokens a process, one thread each, on {here} cores; ms, medians of {TURNS} in turn, and "
        "as the model has it")
    say(f"  {'':13}{'gradients':>12}{'sent':>9}{'sums':>6}   {'without sums':^18}   {'the sums':^18}   {'together':^25}")
    say(f"  {'':10}{'N':>3}{'MB':>12}{'MB':>9}{'':6}" + 3 * f"   {'measured':>9}{'model':>9}" + f"{'off':>7}")
    for method in METHODS:
        alone = statistics.median(one["steps"][method]["seconds"]["silent"])
        for n in PROCESSES:
            steps = found[n]["steps"][method]
            silent, talking = (statistics.median(steps["seconds"][how]) for how in ("silent", "talking"))
            buckets = [b[3] for b in steps["timeline"][0]["buckets"]]
            compute, sums = modelled(alone, n, buckets, found[n]["sums"], here)
            rows.append({"what": "step", "method": method, "processes": n, "silent": silent, "seconds": talking,
                         "compute": compute, "sums": sums, "payload": steps["payload"], "sent": steps["sent"]})
            pairs = (silent, compute), (talking - silent, sums), (talking, compute + sums)
            say(f"  {method:10}{n:3}{steps['payload'] / 1e6:12.2f}{steps['sent'] / 1e6:9.2f}{len(buckets):6}"
                + "".join(f"   {1e3 * a:9.1f}{1e3 * b:9.1f}" for a, b in pairs) + f"{(compute + sums) / talking - 1:+7.0%}")
    for n in PROCESSES[1:]:
        latency, bandwidth = latency_and_bandwidth(found[n]["sums"])
        rows.append({"what": "sum", "processes": n, "latency": latency, "bandwidth": bandwidth, "measured": found[n]["sums"]})
        say(f"  sums over {n} processes: {1e6 * latency:.0f} us + bytes / {bandwidth / 1e9:.2f} GB/s")
    if max(PROCESSES) > here:
        say(f"  more than {here} processes share {here} cores: their compute is taken as N / {here} times as long")
    for method in METHODS:
        timeline = found[2]["steps"][method]["timeline"]
        early, total = overlap(timeline)
        rows.append({"what": "timeline", "method": method, "processes": 2, "ranks": timeline})
        say(f"  {method}, N = 2: {early} of {total} sums were started before the backward pass had ended")

    say(f"\nOn paper: an update of {BATCH:,} tokens by 64 GPUs of {RATE / 1e12:.0f} TFLOP/s, float32 gradients, a ring")
    say(f"  {'':5}{'':10}{'gradients MB':>13}{'sent MB':>9}{'compute s':>11}" + "".join(
        f"{f'sums s, {8 * b / 1e9:.0f} Gbit/s':>20}" for b in NETWORKS))
    for size in RANKS:
        for method in METHODS:
            times = [on_paper(size, method, 64, bandwidth) for bandwidth in NETWORKS]
            rows.append({"what": "paper", "size": size, "method": method, "bytes": gradient_bytes(method, size),
                         "compute": times[0][0], "sums": dict(zip(map(str, NETWORKS), (t[1] for t in times)))})
            say(f"  {size:5}{method:10}{gradient_bytes(method, size) / 1e6:13,.0f}{times[0][1] * NETWORKS[0] / 1e6:9,.0f}"
                f"{times[0][0]:11.3f}" + "".join(f"{t[1]:20.3f}" for t in times))
    return rows


def overlap(timeline):
    """(sums that were on their way before the backward pass had ended, all of them), over all processes."""
    begun = [(b[1], rank["moments"][2]) for rank in timeline for b in rank["buckets"]]
    return sum(started < ended for started, ended in begun), len(begun)


if __name__ == "__main__":
    child(sys.argv[1])

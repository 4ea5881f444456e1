"""More than one process, each with a part of the batch: `mpiexec -n 4 python -m minisl.train ...`. All have the same weights and
the same optimizer; what they tell each other is the sum of their gradients.

    loss = sum over processes of (this process's rows' summed cross-entropy) / (tokens of all)          so gradients add up
    p.grad <- sum over processes of p.grad                                                              `Exchange`
    every process makes the same update, or, sharded, each its own share of it and tells the others     Rajbhandari et al. 2020

Gradients travel while the backward pass makes the next ones (Li et al. 2020, PyTorch Distributed): as they come they are put
into a bucket; a bucket that is full is sent off, and is asked about again whenever the next gradient is done, because MPI moves
data only while it is called.

The order in which a pass finishes its gradients is that of the graph, which is the same on all processes, whatever a method has
frozen for this update. So the buckets need no plan: who comes, comes in the same order everywhere. That it is so is checked.

`join()` says who we are. Alone, which is the case without mpiexec, nothing is imported and nothing is done.
"""

import os
import sys
import time
import traceback
import zlib
from contextlib import contextmanager, nullcontext, redirect_stdout
from functools import cache, partial

import numpy as np

from minisl.backend import array_module, cuda_status, in_words, read, to_numpy
from minisl.errors import InputError, TrainingError
from minisl.parallel import cores

SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # MPICH and Intel, Open MPI, MVAPICH
RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "PMIX_RANK")
SMALLEST, LARGEST, BUCKETS = 1 << 18, 25 << 20, 16  # bytes of a bucket, and about how many there are in between


class AgreedError(InputError):
    """All processes have it, so one of them shows it. code: what they exit with."""

    def __init__(self, text, code):
        super().__init__(text)
        self.code = code


def started():
    """How many processes were started together with this one, as the launcher's variables say; 1 without one."""
    sizes = [os.environ[name] for name in SIZES if os.environ.get(name, "").isdigit()]
    if not sizes and "PMIX_RANK" in os.environ:  # srun
        sizes = [os.environ.get("SLURM_NTASKS", "1")]
    return int(sizes[0]) if sizes else 1


def first_to_speak():
    """Is this process, before MPI has started, the one to say what all would say?"""
    return started() == 1 or next((os.environ[name] for name in RANKS if name in os.environ), "0") == "0"


def join(device="cpu"):
    """The group of processes that mpiexec has started, or `Alone`. device "cuda": each process takes a GPU of its own, which from
    now on is the current one. Cheap when called again.

    Raises InputError: without mpi4py, with an MPI other than mpiexec's, without NCCL, or with fewer GPUs than processes.
    """
    if started() == 1:
        return Alone()
    return nccl() if device == "cuda" else mpi()


@cache
def mpi():
    try:
        from mpi4py import MPI as library

        size = library.COMM_WORLD.size
    except (ImportError, RuntimeError) as error:
        if not first_to_speak():
            raise SystemExit(2) from None
        raise InputError(f"mpiexec has started {started()} processes, which find each other through mpi4py, and that does not "
                         f"work here ({error}); fix: pip install 'minisl[mpi]'") from None
    if size != started():
        if not first_to_speak():
            raise SystemExit(2)
        raise InputError(f"mpiexec has started {started()} processes, but mpi4py sees {size}: it uses "
                         f"{library.Get_library_version().split(maxsplit=1)[0]}, another MPI than mpiexec; take the mpiexec "
                         "beside this Python (pip install 'minisl[mpi]' puts one there)")
    return MPI(library)


@cache
def nccl():
    return NCCL(mpi().library)


class Alone:
    """A group of one. Every group has what this one has.

    rank: this process, 0 .. size - 1; local_rank and local_size: the same among those on this machine.
    """

    rank, size, local_rank, local_size = 0, 1, 0, 1

    def total(self, *numbers):
        """Floats: each number summed over all processes. Also how they agree: total(stop)[0] > 0 where any of them has to."""
        return [float(n) for n in read(*numbers)]

    def broadcast(self, value):
        """Rank 0's value."""
        return value

    def gather(self, value):
        """A list of all processes' values at rank 0, elsewhere None."""
        return [value]

    def barrier(self):
        """Wait for all."""

    def abort(self, code):
        """End all processes, now."""
        sys.exit(code)

    def threads(self):
        """How many cores are this process's share of those it may use."""
        return cores()

    def together(self, function, *args, **options):
        """function(...) on all processes. An InputError, OSError or MemoryError in any of them becomes an AgreedError in all,
        which names the process unless all had it."""
        return function(*args, **options)

    def first(self, function, *args, **options):
        """function(...) at rank 0 alone: what it returns, for all, or such an error of all."""
        return function(*args, **options)

    def guard(self):
        """A block that no process leaves with an error while others wait for it: an AgreedError is shown once, any other by the
        process that has it, and then all end. Rank 0 alone speaks on stdout in it."""
        return nullcontext()

    def check_same(self, model):
        """Raises AgreedError, naming who differs, unless the model's weights and buffers are to the bit the same everywhere."""

    def exchange(self, named_parameters, shard=False, per_layer=False, bucket_bytes=None):
        return NoExchange()


class NoExchange:
    """What `Exchange` is to a process that is alone."""

    payload = bytes = 0
    buckets, backward = (), None

    def arm(self): pass
    def finish(self): pass
    def share_weights(self): pass
    def over_all(self, square_sum): return square_sum
    def own_part(self, state): return state
    def gather_state(self, state): return state


class MPI(Alone):
    """Processes that exchange arrays in host memory. library: the module mpi4py.MPI."""

    def __init__(self, library):
        world, self.library = library.COMM_WORLD, library
        self.rank, self.size = world.rank, world.size
        self.gradients, self.control = world.Dup(), world.Dup()  # nothing said on one is taken for an answer on the other
        local = world.Split_type(library.COMM_TYPE_SHARED)
        self.local_rank, self.local_size = local.rank, local.size
        mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
        self.share = max(1, len(mine) // sum(not mine.isdisjoint(theirs) for theirs in local.allgather(mine)))
        local.Free()

    def total(self, *numbers):
        values = np.array(read(*numbers), np.float64)
        self.control.Allreduce(self.library.IN_PLACE, values)
        return values.tolist()

    def broadcast(self, value):
        return self.control.bcast(value)

    def gather(self, value):
        return self.control.gather(value)

    def barrier(self):
        self.control.Barrier()

    def abort(self, code):
        sys.stdout.flush()
        sys.stderr.flush()
        self.library.COMM_WORLD.Abort(code)

    def threads(self):
        return self.share

    def together(self, function, *args, **options):
        result, failed = attempt(function, *args, **options)
        answers = self.control.allgather(failed)
        if not any(answers):
            return result
        who = next(rank for rank, answer in enumerate(answers) if answer)
        text, code = answers[who]
        raise AgreedError(text if len(set(answers)) == 1 else f"process {who} of {self.size}: {text}", code)

    def first(self, function, *args, **options):
        result, failed = self.control.bcast(attempt(function, *args, **options) if self.rank == 0 else None)
        if failed:
            raise AgreedError(*failed)
        return result

    @contextmanager
    def guard(self):
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere) if self.rank else nullcontext():
            try:
                yield
            except SystemExit:
                raise
            except AgreedError as error:
                if self.rank == 0 and str(error):
                    print("error:", in_a_line(error), file=sys.stderr, flush=True)
                raise SystemExit(error.code) from None
            except TrainingError as error:  # all of them have it, or rank 0 when the others are done
                if self.rank == 0:
                    print("error:", in_a_line(error), file=sys.stderr, flush=True)
                raise SystemExit(1) from None
            except BaseException as error:
                known = isinstance(error, InputError | OSError | MemoryError | KeyboardInterrupt)
                if not known:
                    traceback.print_exc()
                print(f"error: process {self.rank} of {self.size}: {in_a_line(error) if known else in_words(error)}",
                      file=sys.stderr)
                self.abort(2 if isinstance(error, InputError) else 130 if isinstance(error, KeyboardInterrupt) else 1)

    def check_same(self, model):
        crc = 0
        for name, array in sorted(model.state_dict().items()):
            crc = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8), zlib.crc32(name.encode(), crc))
        found = self.control.allgather(crc)
        usual = max(found, key=found.count)
        if others := [str(rank) for rank, crc in enumerate(found) if crc != usual]:
            raise AgreedError(f"the weights have drifted apart: those of process {', '.join(others)} of {self.size} are not "
                              f"those of process {found.index(usual)}", 1)

    def exchange(self, named_parameters, shard=False, per_layer=False, bucket_bytes=None):
        return Exchange(self, named_parameters, shard, per_layer, bucket_bytes)

    # What `Exchange` asks for

    def start_sum(self, flat, owner=None):
        """Begin to replace an array by its sum over all processes, for one of them or for all. Returns a request."""
        here = self.library.IN_PLACE
        if owner is None:
            return self.gradients.Iallreduce(here, flat)
        return self.gradients.Ireduce(*((here, flat) if self.rank == owner else (flat, None)), root=owner)

    def start_broadcast(self, flat, owner):
        """Begin to replace an array by that of one process."""
        return self.gradients.Ibcast(flat, root=owner)

    def odd_one(self, number):
        """The first process whose number is not that of rank 0, or None."""
        numbers = self.control.allgather(number)
        return next((rank for rank, n in enumerate(numbers) if n != numbers[0]), None)

    def gather_arrays(self, arrays):
        """At rank 0 one dict of all processes' arrays, whose names differ; elsewhere None. One array at a time, so that no
        message is longer than the largest of them."""
        kinds = self.control.gather([(name, a.dtype.str, a.shape) for name, a in arrays.items()])
        if self.rank:
            for array in arrays.values():
                self.control.Send(np.ascontiguousarray(array).reshape(-1).view(np.uint8), dest=0)
            return None
        found = dict(arrays)
        for rank, theirs in enumerate(kinds[1:], 1):
            for name, dtype, shape in theirs:
                found[name] = np.empty(shape, dtype)
                self.control.Recv(found[name].reshape(-1).view(np.uint8), source=rank)
        return found


class NCCL(MPI):
    """Processes with a GPU each. Sums run on a stream of their own, beside what the GPU computes; no call waits for them, later
    work on the GPU does. Numbers and objects go through MPI."""

    def __init__(self, library):
        super().__init__(library)
        self.cupy = self.together(self.take_gpu)
        self.nccl, self.stream = self.cupy.cuda.nccl, self.cupy.cuda.Stream(non_blocking=True)
        unique = self.broadcast(self.nccl.get_unique_id() if self.rank == 0 else None)
        self.communicator = self.nccl.NcclCommunicator(self.size, unique, self.rank)
        self.types = {"f": self.nccl.NCCL_FLOAT32, "d": self.nccl.NCCL_FLOAT64}

    def take_gpu(self):
        cupy, why = cuda_status()
        taken = None
        if cupy is not None:
            gpu = self.local_rank % cupy.cuda.runtime.getDeviceCount()  # 0 where the launcher shows each process its own only
            cupy.cuda.Device(gpu).use()
            taken = self.library.Get_processor_name(), cupy.cuda.runtime.deviceGetPCIBusId(gpu)
        everybody = self.control.allgather(taken)
        if cupy is None:
            raise InputError(f"--device cuda: {why}; or use --device cpu")
        if everybody.count(taken) > 1:
            raise InputError(f"--device cuda: {self.local_size} processes on {taken[0]} and fewer GPUs; allowed is one process "
                             "for each GPU")
        if not getattr(cupy.cuda.nccl, "available", True):
            raise InputError("--device cuda: CuPy finds no NCCL, through which GPUs add up gradients; fix: pip install "
                             "nvidia-nccl-cu13 (or -cu12, as CuPy's)")
        return cupy

    def start_sum(self, flat, owner=None):
        here, kind, add = flat.data.ptr, self.types[flat.dtype.char], self.nccl.NCCL_SUM
        if owner is None:
            return self.started(lambda stream: self.communicator.allReduce(here, here, flat.size, kind, add, stream))
        return self.started(lambda stream: self.communicator.reduce(here, here, flat.size, kind, add, owner, stream))

    def start_broadcast(self, flat, owner):
        here, kind = flat.data.ptr, self.types[flat.dtype.char]
        return self.started(lambda stream: self.communicator.broadcast(here, here, flat.size, kind, owner, stream))

    def started(self, call):
        """call(stream) once the GPU has computed what it has been told to so far."""
        ready, done = self.cupy.cuda.Event(), self.cupy.cuda.Event(disable_timing=True)
        ready.record()
        self.stream.wait_event(ready)
        call(self.stream.ptr)
        done.record(self.stream)
        return OnStream(self.cupy, done)


class OnStream:
    """A request of work on another stream, with MPI's methods."""

    def __init__(self, cupy, done):
        self.cupy, self.done = cupy, done

    def Test(self):
        return self.done.done

    def Wait(self):
        """From here on the GPU waits; the host does not."""
        self.cupy.cuda.get_current_stream().wait_event(self.done)


class Bucket:
    """Parameters whose gradients lie one after another in `flat`, and when (seconds of `time.perf_counter`) the first of them
    came, its sum was started, and known to be done."""

    def __init__(self, owner):
        self.owner, self.items, self.nbytes = owner, [], 0
        self.opened, self.started, self.done = time.perf_counter(), None, None

    def add(self, p):
        self.items.append(p)
        self.nbytes += p.grad.nbytes

    def views(self, flat):
        """(parameter, its piece of an array), for each."""
        begin = 0
        for p in self.items:
            yield p, flat[begin : begin + p.size].reshape(p.shape)
            begin += p.size

    def joined(self, arrays):
        return array_module(arrays[0]).concatenate([a.reshape(-1) for a in arrays])

    def test(self):
        if self.done is None and self.request.Test():
            self.done = time.perf_counter()
        return self.done is not None

    def wait(self):
        self.request.Wait()
        self.done = self.done or time.perf_counter()


class Exchange:
    """Sums gradients over a group while they are made. To be made before `Optimizer.update_in_backward`, whose hooks come after
    its own.

    shard: each parameter is summed for, and updated by, one process only. per_layer: a gradient is summed at once, and waited
    for; nothing overlaps. bucket_bytes: when a bucket is full (left out: a 16th of all, between 256 KiB and 25 MiB).

    payload: bytes of the gradients of the last update. bytes: how many of them and of weights this process then sent, if sums go
    round a ring: (N-1)/N of all to add up, (N-1)/N to tell the result. buckets: of the last update, with their times; backward:
    when the first gradient came and `finish` was called.
    Raises InputError for shard with per_layer. A method whose `before_step` reads the optimizer's state, which only owners have,
    cannot be sharded: its module says SHARDS = False.
    """

    def __init__(self, group, named_parameters, shard=False, per_layer=False, bucket_bytes=None):
        if shard and per_layer:
            raise InputError("--shard-optimizer: not with --per-layer, where an update is over before its owner could tell the "
                             "others; leave one of them out")
        self.group, self.per_layer, self.parameters = group, per_layer, dict(named_parameters)
        self.owner = owners({name: p.size for name, p in self.parameters.items()}, group.size) if shard else {}
        total = sum(p.data.nbytes for p in self.parameters.values())
        self.limit = bucket_bytes or min(max(total // BUCKETS, SMALLEST), LARGEST)
        self.armed, self.buckets, self.payload, self.bytes, self.backward = False, [], 0, 0.0, None
        for name, p in self.parameters.items():
            p.register_post_accumulate_grad_hook(partial(self.take, name))

    def arm(self):
        """The next backward pass is the update's last: its gradients are complete as they come."""
        self.armed, self.order, self.payload, self.buckets, self.open, self.backward = True, 0, 0, [], {}, None
        self.seen = set()

    def take(self, name, p):
        """A gradient has come."""
        if not self.armed:
            return
        if name in self.seen:
            raise RuntimeError(f"the gradient of {name} came twice in one update; arm() before the last backward pass only")
        self.seen.add(name)
        self.order = zlib.crc32(name.encode(), self.order)
        self.payload += p.grad.nbytes
        if self.per_layer:
            p.grad = array_module(p.grad).ascontiguousarray(p.grad)
            self.group.start_sum(p.grad).Wait()
            return
        self.backward = self.backward or [time.perf_counter(), None]
        key = self.owner.get(name), p.dtype.char
        bucket = self.open.setdefault(key, Bucket(key[0]))
        bucket.add(p)
        if bucket.nbytes >= self.limit:
            self.start(key)
        for bucket in self.buckets:  # in the order in which they were started; who asks for one moves them all
            if not bucket.test():
                break

    def start(self, key):
        """Send a bucket off. From now on its gradients are pieces of one array, or nobody's but the owner's."""
        bucket = self.open.pop(key)
        bucket.flat = bucket.joined([p.grad for p in bucket.items])
        for p, piece in bucket.views(bucket.flat):
            p.grad = piece if bucket.owner in (None, self.group.rank) else None
        bucket.started = time.perf_counter()
        bucket.request = self.group.start_sum(bucket.flat, bucket.owner)
        self.buckets.append(bucket)

    def finish(self):
        """Wait for all sums. Raises RuntimeError if gradients came in different orders, so that wrong ones were added."""
        self.armed = False
        if self.backward:
            self.backward[1] = time.perf_counter()
        if (who := self.group.odd_one(self.order)) is not None:
            raise RuntimeError(f"process {who} made its gradients in another order than process 0; have they different models?")
        for key in list(self.open):
            self.start(key)
        for bucket in self.buckets:
            bucket.wait()
            del bucket.flat, bucket.request  # the owner's gradients keep the array alive, until they are dropped
        self.bytes = 2 * (self.group.size - 1) / self.group.size * self.payload

    def share_weights(self):
        """Sharded: after the optimizer's step, give every process what the owners made."""
        last = None
        for bucket in [*(b for b in self.buckets if b.owner is not None), None]:
            following = None
            if bucket:
                flat = bucket.joined([p.data for p in bucket.items])
                following = bucket, flat, self.group.start_broadcast(flat, bucket.owner)
            if last:
                done, flat, request = last
                request.Wait()
                if done.owner != self.group.rank:
                    for p, piece in done.views(flat):
                        p.data[...] = piece
            last = following

    def over_all(self, square_sum):
        """The sum of squares of all gradients, of that of this process's: `clip_grad_norm(parameters, c, exchange.over_all)`."""
        return self.group.total(square_sum)[0] if self.owner else square_sum

    def own_part(self, state):
        """Of an `Optimizer.state_dict()`, what belongs to the parameters that this process updates."""
        return {key: a for key, a in state.items() if not self.owner or self.owner.get(name_in(key), 0) == self.group.rank}

    def gather_state(self, state):
        """At rank 0 the whole `Optimizer.state_dict()`, of all processes' parts; elsewhere None."""
        if self.owner:
            return self.group.gather_arrays({key: to_numpy(a) for key, a in self.own_part(state).items()})
        return None if self.group.rank else state


def owners(sizes, n):
    """name -> process that updates it: the largest first, each to whom has least. The same everywhere, as it depends on the sizes
    alone."""
    held, found = [0] * n, {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        found[name] = held.index(min(held))
        held[found[name]] += sizes[name]
    return found


def name_in(key):
    """The parameter's name in a key of an optimizer's state, "KIND.NAME"."""
    return key.partition(".")[2]


def attempt(function, *args, **options):
    """(what it returns, None), or (None, (an error in one line, what a command exits with for it)). --help, say, ends without a
    line."""
    try:
        return function(*args, **options), None
    except SystemExit as stop:
        return None, ("", stop.code or 0)
    except AgreedError as error:
        return None, (str(error), error.code)
    except (InputError, OSError, MemoryError) as error:
        return None, (in_a_line(error), 2 if isinstance(error, InputError) else 1)


def in_a_line(error):
    return " ".join(str(error).split()) or type(error).__name__

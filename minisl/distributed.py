"""More than one process, each with a part of the batch: `mpiexec -n 4 python -m minisl.train ...`. All have the same weights and
the same optimizer; what they tell each other is the sum of their gradients.

    loss = sum over processes of (this process's rows' summed cross-entropy) / (tokens of all)          so gradients add up
    p.grad <- sum over processes of p.grad, during the backward pass                                    `minisl.exchange`
    every process makes the same update, or, sharded, each its own share of it and tells the others     Rajbhandari et al. 2020

`join()` says who we are. Alone, which is the case without mpiexec, nothing is imported and nothing is done.
"""

import os
import stat
import sys
import time
import traceback
import zlib
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from functools import cache

import numpy as np

from minisl.backend import cuda_status, in_words, read
from minisl.errors import InputError, TrainingError
from minisl.exchange import Exchange
from minisl.parallel import cores

SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # MPICH and Intel, Open MPI, MVAPICH
RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "PMIX_RANK")


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
    """The MPI that mpiexec has started this process with. Raises InputError where mpi4py does not fit it."""
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
    """Sums between GPUs, for the processes of `mpi`."""
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
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            wait_until_read(stream)
        try:
            self.library.COMM_WORLD.Abort(code)
        finally:  # it may return before this process is ended
            os._exit(code)

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
        nccl = getattr(cupy.cuda, "nccl", None)  # CuPy has no such name where the library is missing
        if nccl is None or not getattr(nccl, "available", True):
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


def wait_until_read(stream, seconds=10):
    """Wait until the launcher has read what a pipe to it holds, since it ends without that when a process aborts."""
    until = time.monotonic() + seconds
    with suppress(ImportError, OSError, ValueError):  # nothing to ask with, or no file behind the stream
        from fcntl import ioctl
        from termios import FIONREAD

        pipe = stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode)
        while pipe and any(ioctl(stream.fileno(), FIONREAD, bytes(4))) and time.monotonic() < until:
            time.sleep(0.001)


def in_a_line(error):
    """An error's text in one line."""
    return " ".join(str(error).split()) or type(error).__name__

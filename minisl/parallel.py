"""The cores: pieces of one array operation on threads, or parts of a batch on threads, and BLAS kept out of their way.

NumPy and the Numba kernels release Python's lock while they compute, so plain threads are enough. BLAS computes on the thread
that called it: its own threads would wait for work by spinning, on the very cores that the others need.
"""

import operator
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from functools import cache, partial, reduce
from queue import SimpleQueue

import numpy as np

from minisl.backend import unread


def cores():
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class State(threading.local):
    """What a thread knows of itself."""

    alone = False  # this thread shares the cores with others like it, so what it runs stays on it


state = State()
limit = ContextVar("threads", default=None)  # how many threads to use; None is one per core


@contextmanager
def using_threads(n):
    """Within this block no more than n cores compute (None: all). No result depends on it."""
    token = limit.set(n)
    try:
        yield
    finally:
        limit.reset(token)


def each(work, n, grain=None):
    """Call work(begin, end) for the pieces 0 .. grain .. 2 grain .. n, on all cores: who is free takes the next one.

    The pieces depend on n and grain alone, so what is computed does not depend on the number of cores. grain left out: an
    eighth of n, or 64 if that is more. An exception of any piece is raised once all have stopped.
    """
    if state.alone:
        return work(0, n)
    grain = grain or max(64, -(-n // 512) * 64)
    pieces = [(begin, min(begin + grain, n)) for begin in range(0, max(n, 1), grain)]  # of nothing: one, (0, 0)
    with one_blas_thread():
        crew(max(1, min(limit.get() or cores(), len(pieces)))).run(work, pieces)


def even(n, least):
    """A grain that cuts n into 1, 2, 4 or 8 like pieces, as many as are of `least` or more (but two from 128 on), in multiples of
    64: three pieces would keep two cores waiting for each other."""
    pieces = next(p for p in (8, 4, 2, 1) if n >= p * least or (p == 2 and n >= 128) or p == 1)
    return max(64, -(-n // (64 * pieces)) * 64)


class Crew:
    """Threads that wait for work; the caller is one of them."""

    def __init__(self, size):
        self.inboxes = [SimpleQueue() for _ in range(size - 1)]
        for inbox in self.inboxes:
            threading.Thread(target=self.serve, args=(inbox,), daemon=True).start()

    def serve(self, inbox):
        state.alone = True
        while True:
            context, work, pieces, outbox = inbox.get()
            error = context.run(attempt, work, pieces)
            del context, work, pieces  # do not keep their arrays alive while waiting
            outbox.put(error)

    def run(self, work, pieces):
        outbox, pieces = SimpleQueue(), iter(pieces)
        for inbox in self.inboxes:
            inbox.put((copy_context(), work, pieces, outbox))  # there, too, what the caller has set holds: np.errstate
        state.alone = True
        try:
            errors = [attempt(work, pieces)]
        finally:
            state.alone = False
        errors += [outbox.get() for _ in self.inboxes]
        for error in filter(None, errors):
            raise error


def attempt(work, pieces):
    """The error that stopped this thread's share of the work, or None."""
    try:
        for begin, end in pieces:
            work(begin, end)
    except BaseException as error:
        return error


@cache
def crew(size):
    """The threads that share the work, made once for each number of them."""
    return Crew(size)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=crew.cache_clear)  # threads do not survive a fork


class BlasThreads:
    """The number of threads of every BLAS in this process, taken down to one while anybody needs that."""

    def __init__(self):
        from threadpoolctl import ThreadpoolController

        self.libraries = ThreadpoolController().select(user_api="blas").lib_controllers
        self.lock, self.users = threading.Lock(), 0

    def take(self):
        with self.lock:
            if not self.users:
                self.before = [library.get_num_threads() for library in self.libraries]
                self.set([1] * len(self.libraries))
            self.users += 1

    def give_back(self):
        with self.lock:
            self.users -= 1
            if not self.users:
                self.set(self.before)

    def set(self, counts):
        for library, count in zip(self.libraries, counts):
            library.set_num_threads(count)


blas = cache(BlasThreads)


@contextmanager
def one_blas_thread():
    """Within this block BLAS computes on the calling thread alone."""
    blas().take()
    try:
        yield
    finally:
        blas().give_back()


class Workers:
    """A batch in a fixed number of parts, as many at a time as there are threads.

    For small models, where one operation is too short to be shared out. The number of parts decides the result's last bits;
    the number of threads does not.
    """

    def __init__(self, parts):
        self.parts = parts
        self.pool = ThreadPoolExecutor(min(parts, limit.get() or cores()))

    def backward(self, loss_of, *arrays):
        """The sum of loss_of(*part) over parts of the arrays' rows, as a float (from a GPU as an array of one number, there); its
        gradients are added to the leaves.

        The parts' gradients are added in the order of the rows, so the result does not depend on who finishes first. A leaf gets
        their sum, and its hooks are called, when the last part has its gradient; one leaf at a time, on that part's thread.
        """
        n = min(self.parts, len(arrays[0]))
        if n == 1:
            loss = loss_of(*arrays)
            loss.backward()
            return unread(loss.data)
        lock, found = threading.Lock(), {}

        def deliver(k, leaf, gradient):
            with lock:
                of_parts = found.setdefault(leaf, {})
                of_parts[k] = gradient
                if len(of_parts) == n:
                    leaf.accumulate(in_order(found.pop(leaf)))

        parts = zip(*(np.array_split(a, n) for a in arrays))
        calls = [(copy_context(), partial(deliver, k), loss_of, *part) for k, part in enumerate(parts)]
        with one_blas_thread():
            losses = list(self.pool.map(lambda call: call[0].run(backward_of, *call[1:]), calls))
        for leaf, of_parts in found.items():  # those that some parts do not use
            leaf.accumulate(in_order(of_parts))
        return sum(losses)


def backward_of(deliver, loss_of, *part):
    """The loss of one part; its gradients are delivered."""
    state.alone = True  # in a thread of the pool, or on a single one
    try:
        loss = loss_of(*part)
        loss.backward(deliver=deliver)
        return loss.item()
    finally:
        state.alone = False


def in_order(of_parts):
    """The sum of the parts in the order of their numbers, whichever was done first."""
    return reduce(operator.add, (of_parts[k] for k in sorted(of_parts)))

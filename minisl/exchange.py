"""Gradients of several processes added up while the backward pass makes the next ones (Li et al. 2020, PyTorch Distributed).

As they come they are put into a bucket; a bucket that is full is sent off, and is asked about again whenever the next gradient is
done, because MPI moves data only while it is called.

The order in which a pass finishes its gradients is that of the graph, which is the same on all processes, whatever a method has
frozen for this update. So the buckets need no plan: who comes, comes in the same order everywhere. That it is so is checked.
"""

import time
import zlib
from functools import partial

from minisl.backend import array_module, to_numpy
from minisl.errors import InputError

SMALLEST, LARGEST, BUCKETS = 1 << 18, 25 << 20, 16  # bytes of a bucket, and about how many there are in between


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

"""Every function of a backend against NumPy's, at the sizes that decide which way it goes: none, one, an odd few, as
many as fill vectors and tiles, one more, and enough to be shared out among the cores. Used by tests and mutants."""

from contextlib import contextmanager
from itertools import product as product_of
from unittest.mock import patch

import numpy as np

from minisl import kernels, parallel
from minisl.backend import IGNORE_LABEL, array_module, to_numpy
from minisl.kernels import Support
from minisl.kernels.numpy_fused import BLOCK, dynamic_map

TOLERANCE = {np.float64: 1e-12, np.float32: 3e-6}  # of the largest entry


class Draw:
    """draw(3, 4): the next random array, the same for every backend. `spoil`: (k, where, value), one entry of array k. `xp`:
    whose arrays they are, NumPy's or CuPy's."""

    def __init__(self, dtype=np.float64, spoil=None, xp=np):
        self.rng, self.dtype, self.spoil, self.xp, self.drawn = np.random.default_rng(3), dtype, spoil, xp, []

    def __call__(self, *shape):
        array = self.rng.standard_normal(shape).astype(self.dtype)
        if self.spoil and self.spoil[0] == len(self.drawn) and array.size:
            array.flat[int(self.spoil[1] * (array.size - 1))] = self.spoil[2]
        drawn = self.xp.asarray(array)
        self.drawn.append((drawn, array.copy()))
        return drawn

    def rows(self, n, width):
        """(n, width), with a gap after each row and the columns the other way round."""
        return self(n, width + 3)[:, width - 1 :: -1] if width else self(n, 0)

    def heads(self, *shape):
        """(B, H, T, d), as a projection leaves it: (B, T, H, d) in memory."""
        B, H, T, d = shape
        return self(B, T, H, d).swapaxes(1, 2)

    def labels(self, n, classes, ignored=True):
        labels = self.rng.integers(0, classes, n)
        if ignored:
            labels[1::3] = IGNORE_LABEL
        return self.xp.asarray(labels)


def linear(n, width, out):
    def run(k, draw):
        x, weight, dy = draw.rows(n, width), draw(out, width), draw.rows(n, out)
        assert k.linear_backward(dy, x, weight, False)[0] is None
        return k.linear(x, weight), *k.linear_backward(dy, x, weight, True)

    return run


def cross_entropy(n, vocab, spread=1, ignored=True):
    def run(k, draw):
        logits, labels = draw.rows(n, vocab) * draw.dtype(spread), draw.labels(n, vocab, ignored)
        before = logits.copy()
        loss, kept = k.cross_entropy(logits, labels)
        dz = k.cross_entropy_backward(draw.dtype(0.7), logits, labels, kept)
        np.testing.assert_array_equal(to_numpy(logits), to_numpy(before))
        return loss, kept[0] + np.log(kept[1]) if draw.xp is np else kept, dz

    return run


def linear_cross_entropy(n, width, vocab, at_once=None, ignored=True):
    """at_once: logits per slice, as few as each backend can."""
    def run(k, draw):
        x, weight, labels = draw.rows(n, width), draw(vocab, width), draw.labels(n, vocab, ignored)
        with patch.dict(k.linear_cross_entropy.__globals__, {"LOGITS": at_once} if at_once else {}):
            return k.linear_cross_entropy(x, weight, labels, 0.3)

    return run


def rms_norm(n, width):
    def run(k, draw):
        x, gain, dy = draw.rows(n, width), draw(width), draw.rows(n, width)
        y, r = k.rms_norm(x, gain, 0.1)
        return y, r, *k.rms_norm_backward(dy, x, gain, r)

    return run


def swiglu(n, width, spread=1):
    def run(k, draw):
        a, b, dy = draw.rows(n, width) * draw.dtype(spread), draw.rows(n, width), draw.rows(n, width)
        return k.swiglu(a, b), *k.swiglu_backward(dy, a, b)

    return run


def rope(*shape, memory="heads"):
    def run(k, draw):
        x = draw.heads(*shape) if memory == "heads" else draw(*shape)
        return k.rope(x, draw(shape[-2], shape[-1] // 2), draw(shape[-2], shape[-1] // 2)),

    return run


def attention(B, H, G, queries, keys, d, spread=1, memory="heads"):
    def run(k, draw):
        make = draw.heads if memory == "heads" else draw
        q, key, v, dout = (make(B, heads, n, d) for heads, n in ((H, queries), (G, keys), (G, keys), (H, queries)))
        q = q * draw.dtype(spread)
        out, kept = k.attention(q, key, v)
        return out, *k.attention_backward(dout, q, key, v, out, kept)

    return run


def embedding(n, vocab, width):
    def run(k, draw):
        return k.embedding_backward(draw.rows(n, width), draw.labels(n, vocab, ignored=False), vocab),

    return run


def adamw(*shape, weight_decay=0.1, order="C"):
    def run(k, draw):
        p, m, v = (draw(*shape).copy(order=order) for _ in range(3))
        v *= v
        for t in (1, 2, 3):
            k.adamw(p, draw(*shape), m, v, 0.03, (0.8, 0.95), 0.01, weight_decay, t)
        return p, m, v

    return run


def adam8bit(*shape, order="C"):
    def run(k, draw):
        p, size = draw(*shape).copy(order=order), int(np.prod(shape))
        m, v = (draw.xp.full(shape, zero, np.uint8, order=order) for zero in (127, 0))
        m_top, v_top = draw.xp.zeros((2, -(-size // BLOCK)), np.float32)
        tables = tuple(draw.xp.asarray(dynamic_map(signed)) for signed in (True, False))
        for t in (1, 2, 3):
            g = draw(*shape).copy()
            g.reshape(-1)[2 * BLOCK:3 * BLOCK] = 0
            g.reshape(-1)[::5] *= 1e-9  # an m near 0, of both signs
            k.adam8bit(p, g, m, v, m_top, v_top, tables, 0.03, (0.8, 0.95), 0.01, 0.1, t)
        return p, m, v, m_top, v_top

    return run


def square_sum(*shapes):
    def run(k, draw):
        return k.square_sum([draw(*s) if len(s) < 2 else draw.rows(*s) for s in shapes]),

    return run


def a_support(draw, kind, out, width):
    return Support(draw.xp.asarray(positions(kind, out, width)), (out, width))


def positions(kind, out, width):
    """The flat index of S: a tenth of it, in no order, or what `kind` says."""
    rng = np.random.default_rng(4)
    if kind == "none":
        return np.zeros(0, np.int32)
    if kind == "one row":
        return (out // 2 * width + rng.permutation(width)).astype(np.int32)
    if kind == "one column":
        return (rng.permutation(out) * width + width // 2).astype(np.int32)
    if kind == "crowded":
        return (rng.integers(0, 8, 400) * width + rng.integers(0, 8, 400)).astype(np.int32)
    if kind == "repeated":
        return rng.integers(0, out * width, out * width // 3)
    index = rng.permutation(out * width)[: max(1, out * width // 10)].astype(np.int32)
    return np.sort(index) if kind == "sorted" else index


def product(n, width, out, algorithm, kind="some", rank=4):
    def run(k, draw):
        x, dy, B, A = draw.rows(n, width), draw.rows(n, out), draw(rank, out).T, draw(rank, width)
        support = a_support(draw, kind, out, width)
        values = draw(len(support))
        y, xA = getattr(k, f"{algorithm}_forward")(x, B, A, values, support, 0.37)
        backward = getattr(k, f"{algorithm}_backward")
        return (y, *backward(dy, x, B, A, values, support, 0.37, xA), *backward(dy, x, B, A, values, support, 0.37),
                k.dense(B, A, values, support, 0.37))

    return run


def sparse(n, width, out, kind="some"):
    def run(k, draw):
        x, dy, W = draw.rows(n, width), draw.rows(n, out), draw(out, width)
        support = a_support(draw, kind, out, width)
        values = draw(len(support))
        return (k.spmm(x, values, support, False), k.spmm(dy, values, support, True), k.sddmm(dy, x, support),
                k.scatter_add(W, values, support))

    return run


CASES = {}


def add(function, *sizes, **options):
    for size in sizes:
        CASES[" ".join(map(str, [function.__name__, *size, *options.values()]))] = function(*size, **options)


add(linear, (0, 5, 7), (1, 15, 17), (65, 16, 1), (600, 40, 300))
add(cross_entropy, (0, 5), (5, 1), (5, 15), (4, 16), (6, 17), (40, 1000), (1100, 17))
add(cross_entropy, (5, 17), ignored=False)
add(cross_entropy, (5, 40), (40, 17), spread=1e4)
add(linear_cross_entropy, (0, 3, 5), (4, 3, 1), (3, 5, 17), (600, 9, 40))
add(linear_cross_entropy, (5, 7, 17), ignored=False)
add(linear_cross_entropy, (150, 9, 100), (64, 5, 17), (70, 4, 1100), at_once=1)
add(rms_norm, (0, 5), (1, 1), (3, 15), (4, 16), (5, 17), (600, 40))
add(swiglu, (0, 5), (1, 1), (3, 15), (1, 16), (1, 17), (130, 200))
add(swiglu, (3, 40), spread=100)
add(rope, (1, 1, 1, 2), (2, 3, 5, 6), (2, 4, 70, 34))
add(rope, (2, 3, 5, 6), (2, 5, 6), (5, 2), memory="plain")
add(attention, (1, 1, 1, 1, 1, 2), (2, 4, 2, 5, 5, 4), (1, 6, 2, 2, 5, 3), (1, 2, 2, 300, 300, 8), (1, 2, 1, 140, 200, 4),
    (2, 4, 2, 80, 80, 5), (5, 4, 2, 17, 17, 4), (6, 2, 2, 40, 60, 4), (5, 2, 1, 130, 131, 4))
add(attention, (2, 4, 2, 5, 5, 4), memory="plain")
add(attention, (1, 2, 1, 20, 20, 4), spread=1e4)
add(embedding, (0, 3, 2), (40, 7, 5), (600, 50, 40))
add(adamw, (0,), (5,), (3, 17), (150, 120))
add(adamw, (5,), weight_decay=0.0)
add(adamw, (150, 120), order="F")
add(adam8bit, (0,), (5,), (2, 128), (257,), (150, 120))
add(adam8bit, (150, 120), order="F")
add(square_sum, (), ((0,), (5,)), ((3, 7), (150_001,), *((i,) for i in range(1, 10))))
for algorithm in ("materialised", "factored"):
    add(product, (0, 5, 7), (1, 15, 17), (63, 16, 40), (64, 17, 16), (65, 40, 15), (130, 40, 40), (600, 33, 48), (1100, 48, 33),
        algorithm=algorithm)
    for kind in ("none", "sorted", "one row", "repeated"):
        add(product, (70, 17, 40), algorithm=algorithm, kind=kind)
add(product, (7, 33, 48), algorithm="factored")
add(sparse, (0, 5, 7), (1, 15, 17), (63, 16, 40), (64, 17, 16), (65, 40, 15), (600, 33, 48), (1100, 48, 33))
for kind in ("none", "sorted", "one row", "repeated"):
    add(sparse, (70, 17, 40), kind=kind)


def results(name, backend, draw=None):
    """The arrays that a case gives with a backend."""
    return computed(CASES[name], kernels.load(backend, np.zeros(0)).module, draw or Draw())


def computed(case, module, draw):
    """The arrays that a case gives with a backend's module, as NumPy's. What it leaves unwritten is NaN."""
    with nothing_written(draw.xp), np.errstate(all="ignore"):
        found = [np.asarray(a if array_module(a) is np else to_numpy(a)) for a in case(module, draw)]
    for array, before in draw.drawn:
        np.testing.assert_array_equal(to_numpy(array), before, err_msg="an input was changed")
    return found


@contextmanager
def nothing_written(xp):
    """Within this block new arrays hold NaN where others would hold what was in memory."""
    def spoiled(make):
        def unwritten(*args, **options):
            array = make(*args, **options)
            array.fill({"f": np.nan, "u": 255}.get(array.dtype.kind, -1))
            return array

        return unwritten

    with patch.object(xp, "empty", spoiled(xp.empty)), patch.object(xp, "empty_like", spoiled(xp.empty_like)):
        yield


@contextmanager
def alone():
    """As on the thread of one part of a batch: nothing is shared out."""
    parallel.state.alone = True
    try:
        yield
    finally:
        parallel.state.alone = False


@contextmanager
def last_piece_first():
    """The pieces of shared work, one after the other, from the end."""
    def run(crew, work, pieces):
        with alone():
            for piece in reversed(pieces):
                work(*piece)

    with patch.object(parallel.Crew, "run", run):
        yield


def check_same(name, dtype=np.float64):
    """Shared out or on one core: NumPy's result, in its shape and dtype."""
    right = results(name, "numpy", Draw(dtype))
    for mine in (results(name, "cpu", Draw(dtype)), on_one_core(name, dtype)):
        assert [(a.shape, a.dtype) for a in mine] == [(a.shape, a.dtype) for a in right]
        for i, (a, b) in enumerate(zip(mine, right)):
            assert np.abs(a - b).max(initial=0) <= TOLERANCE[dtype] * np.abs(b).max(initial=1e-3), f"result {i}"


def on_one_core(name, dtype):
    with alone():
        return results(name, "cpu", Draw(dtype))


def check_bits(name):
    """Neither the number of threads nor who is done first decides any bit."""
    with last_piece_first():
        right = results(name, "cpu", Draw(np.float32))
    for threads in (1, 2, 3):
        with parallel.using_threads(threads):
            for a, b in zip(results(name, "cpu", Draw(np.float32)), right, strict=True):
                assert a.tobytes() == b.tobytes()


def check_not_finite(name):
    """One NaN or infinity, in the first, a middle or the last entry of each input, spoils the entries that it spoils in NumPy."""
    count = Draw()
    results(name, "numpy", count)
    for spoil in product_of(range(len(count.drawn)), (0, 0.4, 1), (np.nan, np.inf, -np.inf)):
        mine, right = (results(name, backend, Draw(spoil=spoil)) for backend in ("cpu", "numpy"))
        spoiled = np.isnan if np.isnan(spoil[2]) else lambda a: ~np.isfinite(a)
        for i, (a, b) in enumerate(zip(mine, right, strict=True)):
            np.testing.assert_array_equal(spoiled(a), spoiled(b), err_msg=f"result {i}, {spoil}")

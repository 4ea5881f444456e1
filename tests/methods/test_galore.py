"""GaLore: its step against NumPy, where it is Adam or SGD, and what a change of basis does to it."""

import numpy as np
import pytest
from mutation import mutant_tests

from minisl.backend import generator
from minisl.errors import InputError
from minisl.methods import galore
from minisl.methods.galore import GaLore
from minisl.optim import SGD, Adam, Adam8bit
from minisl.optim.projectors import Projector

OPTIONS = {"rank": 3, "every": 2, "scale": 0.25, "projector": "svd", "at_change": "keep"}
SHAPES = (7, 5), (5, 7)


def make(shape, base=Adam, dtype="float64", **changes):
    return galore.rule("w", np.zeros(shape, dtype), base, lambda t: generator(3, t), **OPTIONS | changes)


def turned(shape, kind, base=Adam, **changes):
    """A rule whose P is as large as the matrix and yet not the identity."""
    rank = min(shape)
    one = make(shape, base, rank=rank, **changes)
    one.projector = Projector(kind, np.zeros(shape), rank, one.projector.rng_at)
    one.chosen = one.projector.unchosen()
    return one


def gradients(shape, n=6):
    return np.random.default_rng(0).standard_normal((n, *shape))


def by_hand(gradients, rank, every, scale, at_change):
    """GaLore with out >= in, from eigenvectors of G^T G: other signs than the SVD's, so nothing may depend on them."""
    P = None
    for i, G in enumerate(gradients):
        if i % every == 0:
            old, P = P, np.linalg.eigh(G.T @ G)[1][:, ::-1][:, :rank]  # (in, r)
            if i == 0 or at_change == "reset":
                m, v, t = np.zeros((len(G), rank)), np.zeros((len(G), rank)), 0
            else:  # rotate: R = G P, and G is taken to be R_old P_old^T
                C = old.T @ P
                m, new = m @ C, np.zeros_like(v)
                for row in range(len(G)):
                    for j in range(rank):
                        new[row, j] = sum(C[k, j] ** 2 * v[row, k] for k in range(rank))
                v = new
        R, t = G @ P, t + 1
        m, v = 0.9 * m + 0.1 * R, 0.999 * v + 0.001 * R**2
        N = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        yield scale * N @ P.T


def check_steps():
    """Six steps with two changes of basis, both ways round."""
    for shape in SHAPES:
        for at_change in ("reset", "rotate"):
            one, G = make(shape, at_change=at_change), gradients(shape)
            tall = G if shape[0] >= shape[1] else G.swapaxes(1, 2)
            for g, right in zip(G, by_hand(tall, 3, 2, 0.25, at_change)):
                np.testing.assert_allclose(one.direction(g), right if shape[0] >= shape[1] else right.T, atol=1e-6)


def check_full_rank_is_adam():
    """With nothing to leave out: whatever the projector, and whenever it changes."""
    for shape in (*SHAPES, (5, 5)):
        for projector in ("svd", "random", "dct"):
            for at_change in ("keep", "reset", "rotate"):
                one = make(shape, rank=5, scale=1.0, projector=projector, at_change=at_change)
                adam = Adam(np.zeros(shape))
                for g in gradients(shape):
                    np.testing.assert_array_equal(one.direction(g), adam.direction(g))


def check_full_rank_of_sgd_is_sgd_in_every_basis():
    """P^T P = I is all that a linear rule sees of it. Adam divides number by number, and in another basis is another method."""
    for shape in SHAPES:
        for kind in ("svd", "random", "dct"):
            one, adam = turned(shape, kind, SGD, scale=1.0), turned(shape, kind, scale=1.0)
            for g in gradients(shape):
                np.testing.assert_allclose(one.direction(g), g, atol=1e-12)
            assert abs(adam.direction(g) - Adam(g).direction(g)).max() > 0.1


def along_axes(n=8):
    """Gradients (7, 5) in columns 0, 2 and 4 alone, where an SVD is taken (every second) orthogonal, and of new lengths."""
    rng = np.random.default_rng(1)
    for i in range(n):
        G = np.zeros((7, 5))
        G[:, [0, 2, 4]] = np.linalg.qr(rng.standard_normal((7, 3)))[0] * rng.permutation([3.0, 2, 1])
        G[:, [0, 2, 4]] *= rng.choice([-1, 1], 3)
        yield G if i % 2 == 0 else G + (G != 0) * rng.standard_normal((7, 5))


def check_adam_where_singular_vectors_are_axes():
    """P permutes and signs, as C does: Adam does not see that, and loses nothing if the moments turn along."""
    off = {}
    for at_change in ("rotate", "keep"):
        one, adam = make((7, 5), scale=1.0, at_change=at_change), Adam(np.zeros((7, 5)))
        off[at_change] = max(abs(one.direction(g) - adam.direction(g)).max() for g in along_axes())
    assert off["rotate"] < 1e-6
    assert off["keep"] > 0.1


def check_signs_of_singular_vectors():
    """Flipped at a change they move the weights elsewhere with `keep`, nowhere else with `reset` or `rotate`."""
    far = {}
    for at_change in ("keep", "reset", "rotate"):
        ends = []
        for sign in (1, -1):
            one = make((7, 5), at_change=at_change)
            choose = one.projector.choose
            one.projector.choose = lambda g, t, sign=sign, choose=choose: choose(g, t) * (sign if t == 3 else 1)
            ends.append(sum(one.direction(g) for g in gradients((7, 5))))
        far[at_change] = np.linalg.norm(ends[0] - ends[1]) / np.linalg.norm(ends[0])
    assert far["keep"] > 0.1
    assert far["reset"] < 1e-10
    assert far["rotate"] < 1e-10


def check_keep_keeps():
    """A change touches no moment; in between P stays."""
    one = make((7, 5), every=3)
    seen = []
    for g in gradients((7, 5), 4):
        before = one.inner.exp_avg.copy(), one.inner.step
        one.direction(g)
        R = g @ one.chosen.T
        np.testing.assert_allclose(one.inner.exp_avg, 0.9 * before[0] + 0.1 * R)
        assert one.inner.step == before[1] + 1
        seen.append(one.chosen.copy())
    assert [np.array_equal(seen[0], P) for P in seen] == [True, True, True, False]


def check_rank_of_a_step():
    """At most r, and of their sum more."""
    for shape in SHAPES:
        for projector in ("svd", "random", "dct"):
            one = make(shape, projector=projector)
            steps = [one.direction(g) for g in gradients(shape)]
            assert {np.linalg.matrix_rank(s) for s in steps} == {3}
            assert np.linalg.matrix_rank(sum(steps)) > 3


def check_held():
    """To the byte, each projector; and saved in the middle, each goes on as if nothing had been."""
    for shape in SHAPES:
        for projector in ("svd", "random", "dct"):
            for rank in (3, 5):
                changes = {"rank": rank, "projector": projector, "at_change": "rotate"}
                one, G = make(shape, dtype="float32", **changes), gradients(shape).astype("float32")
                for g in G[:3]:
                    one.direction(g)
                held = galore.held(*shape, **OPTIONS | changes)
                assert sum(a.nbytes for a in one.arrays()) == 4 * (2 * sum(held.moments) + held.state + held.indices)
                assert (held.weights, held.moments) == ((35,), (7 * rank,))
                two = make(shape, dtype="float32", **changes)
                two.load_state_dict({k: a.copy() for k, a in one.state_dict().items()})
                for g in G[3:]:
                    np.testing.assert_array_equal(one.direction(g), two.direction(g))
                assert two.direction(g).dtype == np.float32


CHECKS = (check_steps, check_full_rank_is_adam, check_full_rank_of_sgd_is_sgd_in_every_basis,
          check_adam_where_singular_vectors_are_axes, check_signs_of_singular_vectors, check_keep_keeps, check_rank_of_a_step,
          check_held)


@pytest.mark.parametrize("check", CHECKS)
def test(check):
    check()


def test_eight_bits_inside():
    """Moments of r x max(out, in) bytes. They cannot be rotated, which is said; a rule without moments has none to rotate."""
    one = make((72, 64), Adam8bit, "float32", rank=60)
    one.direction(gradients((72, 64), 1)[0].astype("float32"))
    assert one.inner.exp_avg.dtype == np.uint8
    assert one.inner.exp_avg.shape == (72, 60)
    with pytest.raises(InputError, match="allowed: keep, reset"):
        make((72, 64), Adam8bit, "float32", rank=60, at_change="rotate")
    one = make((7, 5), SGD, at_change="rotate")
    for g in gradients((7, 5)):
        one.direction(g)


def test_a_rank_that_cannot_be():
    with pytest.raises(InputError, match="1 to 5"):
        make((7, 5), rank=6)


test_mutants = mutant_tests([
    (GaLore.basis, "(self.step - 1) % self.every", "self.step % self.every"),
    (GaLore.basis, "self.change(self.projector.rows(old)", "self.change(self.projector.rows(self.chosen)"),
    (GaLore.direction, "self.scale * ", ""),
    (GaLore.direction, "self.projector.up(N, P)", "self.projector.up(self.projector.down(gradient, P), P)"),
    (GaLore.change, "new @ old.T", "old @ new.T"),
    (GaLore.change, "C * C", "abs(C)"),
    (GaLore.change, '"reset"', '"rotate"'),
    (galore.kind, "rank < min(shape)", "rank <= min(shape)"),
    (galore.held, "rank * max(sides)", "rank * min(sides)"),
], *CHECKS)

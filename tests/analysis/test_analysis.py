"""Every analysis against a computation of another kind, or a law that it must obey; the command; and mistakes one could make."""

import itertools
import json

import numpy as np
import pytest
from mutation import mutant_tests

from minisl.analysis import __main__ as command
from minisl.analysis import counting, eight_bits, full_rank, job, parts, runs, spectrum, supports
from minisl.autograd import Tensor
from minisl.command import run_command
from minisl.data import Batches
from minisl.errors import InputError
from minisl.kernels import numpy_fused
from minisl.methods.sltrain import SLLinear

SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL = {"shape": SHAPE, "batch": 4, "length": 16, "parts": 1, "rank": 4, "delta": 0.2}


def text():
    """A text with something to learn in it: each id is the one before plus 1 or 2, below 20."""
    steps = np.random.default_rng(0).integers(1, 3, 3000)
    ids = (steps.cumsum() % 20).astype(np.uint16)
    return job.Text(ids[:2400], ids[2400:2400 + 129], vocab_size=20)


TEXT = text()


def small(method="sltrain", steps=12, **more):
    return job.train(TEXT, method, steps=steps, checks=3, **SMALL | more)


def layer():
    """A 7 x 6 SLTrain layer in float64 with a B that is not zero."""
    one = SLLinear(6, 7, np.random.default_rng(1), "float64", **job.SETTINGS | {"rank": 3, "delta": 0.3, "alpha": 6.0})
    one.lora_B.data = np.random.default_rng(2).standard_normal((7, 3))
    return one


# The job

def check_job():
    """The same twice, learns, validates where it says, starts where it is told, and moves nothing that is frozen."""
    one, two = small(), small()
    np.testing.assert_array_equal(one.losses, two.losses)
    np.testing.assert_array_equal(one.val_losses, two.val_losses)
    assert not np.array_equal(one.losses, small(seed=1).losses)
    assert one.losses[-1] < one.losses[0]
    assert one.checked.tolist() == [4, 8, 12]
    np.testing.assert_allclose(one.val_loss, job.validation_loss(one.model, TEXT, 16), rtol=1e-6)
    still, batches = small(steps=3, lr=0.0), Batches(TEXT.train, 4, 16, 42)
    np.testing.assert_allclose(still.losses, [still.model.loss(*batches(k), 1 / 64).item() for k in range(3)], rtol=1e-5)
    assert [layer.shape for _, layer in job.matrices(one.model)] == 4 * [(16, 16)] + 2 * [(24, 16)] + [(16, 24)]


def test_job():
    check_job()


def test_job_refuses_what_a_method_does_not_know():
    with pytest.raises(InputError, match="every: no setting of sltrain; allowed: rank, delta"):
        small(steps=0, every=3)


def test_text_of_bytes(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join("one line of many" for _ in range(200)))
    found = job.read_text([str(tmp_path)], held_out=50)
    assert (len(found.held_out), found.vocab_size, found.train[0]) == (50, 257, found.end)
    assert found.train.max() < 257


# 1: singular values and residual

def check_spectrum():
    """The residual of the first r directions: orthogonal to them, its norm the rest of the spectrum; shares that end at 1."""
    W = np.random.default_rng(3).standard_normal((9, 7))
    found = spectrum.spectrum(W, 3)
    eigen = np.sqrt(np.linalg.eigvalsh(W.T @ W)[::-1])
    np.testing.assert_allclose(found.sigma, eigen, rtol=1e-10)
    np.testing.assert_allclose(np.linalg.norm(found.residual), np.sqrt((eigen[3:] ** 2).sum()), rtol=1e-10)
    np.testing.assert_allclose(np.linalg.norm(found.residual, 2), eigen[3], rtol=1e-10)
    assert np.linalg.matrix_rank(W - found.residual) == 3
    assert found.share[-1] == 1
    assert (np.diff(found.share) > 0).all()
    for share in (0.5, 0.97):
        below = (np.abs(found.residual) <= found.within(share)).mean()
        assert share <= below < share + 1 / 60
    B, A = spectrum.best_low_rank(W, 3)
    np.testing.assert_allclose(np.linalg.norm(B, axis=0), np.linalg.norm(A, axis=1), rtol=1e-10)


def test_spectrum():
    check_spectrum()


# 2: supports

def check_supports():
    """Largest: no entry outside is larger. Random: by seed, by matrix, sorted, distinct. Start: L of rank r, S what is asked."""
    dense = small("full", 3).model
    rank, weights = 4, {path: one.weight.data for path, one in job.matrices(dense)}
    path = "model.layers.0.mlp.down_proj"
    U, sigma, Vt = np.linalg.svd(weights[path].astype(float))
    rest = np.abs(U[:, rank:16] * sigma[rank:] @ Vt[rank:16])
    index = supports.largest_of(dense, rank)(path, rest.shape, 70)
    outside = np.delete(rest.ravel(), index)
    assert rest.flat[index].min() >= outside.max() - 1e-6
    assert (np.diff(index) > 0).all()
    draw = supports.at_random(5)
    one = draw(path, (16, 24), 70)
    assert len(one) == 70
    assert (np.diff(one) > 0).all()
    assert one.max() >= 16 * 16
    np.testing.assert_array_equal(one, supports.at_random(5)(path, (16, 24), 70))
    assert not np.array_equal(one, supports.at_random(6)(path, (16, 24), 70))
    assert not np.array_equal(one, draw("model.layers.0.mlp.up_proj", (16, 24), 70))

    for keep in (True, False):
        model = small(steps=0, start=supports.from_dense(dense, draw, keep), alpha=12.0).model
        layers = dict(job.matrices(model))
        L, S = parts.split(layers[path])
        np.testing.assert_allclose(np.linalg.svd(L, compute_uv=False)[:rank], sigma[:rank], rtol=1e-5)
        assert np.linalg.matrix_rank(L, tol=1e-5) == rank
        np.testing.assert_array_equal(np.flatnonzero(S), draw(path, (16, 24), int(0.2 * 16 * 24)) if keep else [])
        if keep:
            np.testing.assert_allclose((L + S).flat[layers[path].sparse_index],
                                       weights[path].flat[layers[path].sparse_index], atol=1e-6)
        np.testing.assert_array_equal(model.lm_head.weight.data, dense.lm_head.weight.data)
    start = supports.from_dense(dense, draw, False)
    before, after = (small(steps=n, start=start).model.state_dict() for n in (0, 3))
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved == {name for name in before if name.endswith("sparse_value")}


def test_supports():
    check_supports()


def test_support_table():
    """Entries of the residual only help; and with all of them there is nothing left to approximate."""
    dense = small("full", 30, lr=1e-2).model
    found = supports.support_table(dense, TEXT, steps=20, **SMALL | {"rank": 2, "delta": 0.2})
    assert list(found) == list(supports.LABELS)
    assert found["trained random"] < found["alone"]
    assert found["trained largest"] < found["alone"]
    whole = supports.support_table(dense, TEXT, steps=0, **SMALL | {"rank": 16})
    np.testing.assert_allclose([whole["alone"], whole["random"]], whole["full"], rtol=1e-5)


# 3 and 7: the parts of W

def check_parts():
    """L + S = W; the parts along each direction sum to its singular value; cosine and norms as written out."""
    one = layer()
    L, S = parts.split(one)
    np.testing.assert_allclose(L + S, one.to_dense(), rtol=1e-12)
    assert np.linalg.matrix_rank(L) == 3
    np.testing.assert_array_equal(np.flatnonzero(S), one.sparse_index)
    sigma, low, sparse = parts.by_direction(L, S)
    np.testing.assert_allclose(low + sparse, sigma, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(sigma, np.linalg.svd(one.to_dense(), compute_uv=False), rtol=1e-10)
    U, _, Vt = np.linalg.svd(L + S)
    np.testing.assert_allclose(low, [U[:, i] @ L @ Vt[i] for i in range(6)], rtol=1e-10, atol=1e-10)

    X = np.random.default_rng(4).standard_normal((11, 6))
    for inputs, a, b in ((None, L, S), (X, X @ L.T, X @ S.T)):
        cosine, kept = parts.cancellation(L, S, inputs)
        a, b = a.ravel().tolist(), b.ravel().tolist()
        norm = [sum(x * x for x in part) ** 0.5 for part in (a, b, [x + y for x, y in zip(a, b)])]
        np.testing.assert_allclose(cosine, sum(x * y for x, y in zip(a, b)) / norm[0] / norm[1], rtol=1e-10)
        np.testing.assert_allclose(kept, norm[2] / (norm[0] + norm[1]), rtol=1e-10)
    np.testing.assert_allclose(parts.cancellation(L, -L), (-1, 0), atol=1e-12)
    np.testing.assert_allclose(parts.cancellation(L, 2 * L), (1, 1), atol=1e-12)


def test_parts():
    check_parts()


def test_cancellations_hear_each_layers_own_inputs():
    model = small().model
    ids = TEXT.train[:32].astype(int).reshape(2, 16)
    found = parts.cancellations(model, ids)
    block = model.model.layers[0]
    normed = block.input_layernorm(Tensor(model.model.embed_tokens.weight.data[ids])).data.reshape(32, 16)
    L, S = parts.split(block.self_attn.v_proj)
    np.testing.assert_allclose(found["v_proj"][0], [parts.cancellation(L, S), parts.cancellation(L, S, normed)], rtol=1e-4)
    assert {kind: rows.shape for kind, rows in found.items()} == dict.fromkeys(job.MATRICES, (1, 2, 2))
    assert "forward" not in vars(block.self_attn.v_proj)


# 5: full rank

def brute_matching(index, n):
    allowed = set(index.tolist())
    return max(sum(i * n + j in allowed for i, j in enumerate(p)) for p in itertools.permutations(range(n)))


def check_matching():
    for seed in range(12):
        index = np.flatnonzero(np.random.default_rng(seed).random(25) < 0.25)
        assert full_rank.matching(index, 5) == brute_matching(index, 5)
    assert full_rank.matching(np.array([0, 1, 2]), 3) == 1
    found = full_rank.ranks(24, 2, (0.4, 1, 2), trials=6)
    np.testing.assert_allclose(found.delta[1], np.log(24) / 24)
    np.testing.assert_array_equal(found.sparse, found.matching)
    np.testing.assert_array_equal(found.both, np.minimum(24, 2 + found.matching))
    assert len(np.unique(found.matching[0])) > 1
    alone, both = found.shares()
    assert (alone <= both).all()
    np.testing.assert_allclose(alone[2], (found.matching[2] == 24).mean())


def test_full_rank():
    check_matching()


def test_full_rank_at_the_size_of_the_proposition():
    """n = 128, r = 8: B A + S has full rank never at c = 0.5 and always from c = 1 on; S alone 15 % and 100 % at c = 1 and 3."""
    found = full_rank.ranks(c=(0.5, 1, 3), trials=8)
    alone, both = found.shares()
    assert both.tolist() == [0, 1, 1]
    assert alone[0] == 0
    assert alone[1] < 0.5
    assert alone[2] == 1
    np.testing.assert_allclose(full_rank.expected(128, np.log(128) / 128 * np.array([0.5, 1, 1.5, 2, 3])),
                               [0, 0.15, 0.85, 0.98, 1], atol=0.03)


# 4, 6, 8: runs side by side

def test_supports_are_all_that_differs():
    found = runs.support_runs(TEXT, {seed: supports.at_random(seed) for seed in range(2)}, steps=4, checks=2, **SMALL)
    one, two = (dict(job.matrices(found[seed].model)) for seed in (0, 1))
    for path in one:
        assert not np.array_equal(one[path].sparse_index, two[path].sparse_index)
    np.testing.assert_allclose(runs.spread(found), abs(found[0].val_losses - found[1].val_losses))
    start = [small(steps=0, start=supports.with_support(supports.at_random(seed))).model.state_dict() for seed in (0, 1)]
    for name in start[0]:
        assert np.array_equal(start[0][name], start[1][name]) != name.endswith("sparse_index"), name


def check_ablation():
    more = {k: v for k, v in SMALL.items() if k not in ("rank", "delta")}
    losses, parameters = runs.ablation(TEXT, (2, 4), (0.1, 0.3), steps=3, **more)
    rest = 2 * 20 * 16 + 3 * 16
    per_rank = 4 * 32 + 3 * 40
    for i, rank in enumerate((2, 4)):
        assert parameters[i, 0] == rest + rank * per_rank
        assert parameters[i, 2] == parameters[i, 0] + 4 * int(0.3 * 256) + 3 * int(0.3 * 384)
    again = job.train(TEXT, "sltrain", steps=3, rank=4, alpha=4.0, delta=0.1, **more)
    assert losses[1, 1] == again.val_loss


def test_ablation():
    check_ablation()


def test_basis_changes():
    """The same until the first change of basis, and not after it."""
    found = runs.basis_changes(TEXT, (3, 99), steps=6, checks=6, **{k: v for k, v in SMALL.items() if k != "delta"})
    losses = {name: one.losses for name, one in found.items()}
    for one, two in itertools.combinations(("keep", "reset", "rotate"), 2):
        np.testing.assert_array_equal(losses[one, 3][:4], losses[two, 3][:4])
        assert losses[one, 3][4] != losses[two, 3][4]
        np.testing.assert_array_equal(losses[one, 99], losses[two, 99])


# 9: maps of eight bits

def check_maps():
    """Nearest numbers by looking at all of them; the linear map's error bound; Adam with the dynamic map is Adam8bit."""
    x = np.concatenate([np.random.default_rng(0).uniform(-1, 1, 300), [0, 1, -1]])
    for signed, name in itertools.product((True, False), eight_bits.MAPS):
        table, values = eight_bits.MAPS[name](signed).astype(float), x if signed else abs(x)
        assert (table == 0).sum() == 1
        assert (np.diff(table) > 0).all()
        nearest = table[abs(values[:, None] - table).argmin(axis=1)]
        np.testing.assert_array_equal(abs(eight_bits.rounded(values, table) - values), abs(nearest - values))
    assert abs(eight_bits.rounded(abs(x), eight_bits.linear_map(False)) - abs(x)).max() <= 0.5 / 255 + 1e-7
    np.testing.assert_allclose(eight_bits.rounding_error(eight_bits.linear_map(False), np.array([1e-3, 0.25])),
                               [1, abs(64 / 255 - 0.25) / 0.25], rtol=1e-4)
    v = np.array([1, 1e-3, 3e-3, 0, 1e-4, 1e-6, 1e-7])  # in blocks of four the last three have 1e-4 for their largest
    assert eight_bits.underflow(v, eight_bits.linear_map(False), block=4) == 2 / 6
    codes, tops = np.zeros(600, np.uint8), np.zeros(3, np.float32)
    v = (np.random.default_rng(1).standard_normal(600) ** 8).astype(np.float32)
    numpy_fused.encode(v, codes, tops, eight_bits.linear_map(False))
    assert eight_bits.underflow(v, eight_bits.linear_map(False)) == ((codes == 0) & (v > 0)).sum() / (v > 0).sum()

    rng, results = np.random.default_rng(2), []
    gradients = rng.standard_normal((4, 64, 64)).astype(np.float32) ** 5
    for rule in (eight_bits.Adam8bit, eight_bits.adam_with("dynamic", "dynamic"), eight_bits.adam_with("linear", "linear")):
        w = np.zeros((64, 64), np.float32)
        one = rule(w)
        for g in gradients:
            one.update(w, g, 0.1)
        results.append((w, one))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    mixed = eight_bits.adam_with("linear", "dynamic")(w)
    np.testing.assert_array_equal(mixed.tables[0], eight_bits.linear_map(True))
    np.testing.assert_array_equal(mixed.tables[1], numpy_fused.dynamic_map(False))
    for codes, table in zip((mixed.exp_avg, mixed.exp_avg_sq), mixed.tables):
        assert not table[codes].any()  # moments start at 0
    first, last = results[0][1], results[2][1]
    assert (last.exp_avg_sq == 0).mean() > 0.3  # v gone
    assert (first.exp_avg_sq == 0).mean() < 0.1
    assert abs(results[2][0]).max() > 1.3 * abs(results[0][0]).max()

    w, g = np.zeros((64, 64), np.float32), np.full((64, 64), 0.01, np.float32)
    g[:, 0] = 1  # so in every block v of the others is lost
    one = eight_bits.adam_with("dynamic", "linear")(w)
    one.update(w, g, 1.0)
    before, m = w.copy(), 0.9 * numpy_fused.decoded(one.exp_avg, one.exp_avg_top, one.tables[0])
    one.update(w, np.zeros_like(w), 1.0)
    np.testing.assert_allclose((before - w)[:, 1:], m[:, 1:] / (1 - 0.9**2) / 1e-8, rtol=1e-4)  # nothing but eps below m


def test_maps():
    check_maps()


# 10: one batch too many

def check_counting():
    losses = [3.0, 4.0, 5.0]
    np.testing.assert_allclose(counting.as_published(losses), 3.0)
    np.testing.assert_allclose(np.log(counting.published(np.exp(4.0), 3)), 3.0)
    np.testing.assert_allclose(counting.corrected(counting.published(34.0, 17), 17), 34.0)
    found = counting.corrections()
    expected = {"full 60M": (182, 34.73), "full 130M": (182, 25.53), "full 350M": (91, 19.42), "full 1B": (364, 15.68)}
    for name, (batches, right) in expected.items():
        assert found[name][0] == batches
        assert round(found[name][2], 2) == right


def test_counting():
    check_counting()


def test_counted():
    model = small().model
    batches, loss, printed = counting.counted(model, TEXT.held_out, (1, 2, 8), 16)
    assert batches.tolist() == [8, 4, 1]
    np.testing.assert_allclose(loss, job.validation_loss(model, TEXT, 16), rtol=1e-5)
    np.testing.assert_allclose(printed, loss * batches / (batches + 1))


# The command and the figures

@pytest.fixture
def tiny(monkeypatch):
    """The command at the size of these tests."""
    class Tiny(command.Study):
        def __init__(self, steps):
            super().__init__(steps, lambda: TEXT, SHAPE, SHAPE, {"rank": 4, "delta": 0.2, "alpha": 4.0})

    monkeypatch.setattr(command, "Study", Tiny)


@pytest.mark.parametrize("name", ["maps", "spectrum", "supports", "parts", "cancellation"])
def test_command_draws(tiny, monkeypatch, tmp_path, capsys, name):
    assert run_command(command.main, ["--out", str(tmp_path / "new"), "--only", name, name, "--steps", "2"]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{name} (")
    assert last.startswith(f"{tmp_path / 'new'}: 1 figures in ")
    numbers, file = sorted((tmp_path / "new").iterdir(), key=lambda p: p.suffix)
    assert (numbers.name, file.name) == ("numbers.json", f"{name}.png")
    assert json.loads(numbers.read_text())["lines"] == {name: first.partition("): ")[2]}
    assert 5_000 < file.stat().st_size < 80_000
    assert file.read_bytes().startswith(b"\x89PNG")


def test_numbers_are_kept_beside_those_of_the_same_kind(tmp_path):
    def note(steps, name):
        command.note(tmp_path / "numbers.json", steps, name, f"{name} 1.0")
        return list(json.loads((tmp_path / "numbers.json").read_text())["lines"])

    assert [note(3, "a"), note(3, "b"), note(4, "c")] == [["a"], ["a", "b"], ["c"]]


def test_figures_of_runs(tmp_path):
    jobs = {name: small(steps=3) for name in "ab"}
    runs.curves_figure(tmp_path / "curves.png", jobs, "two", {"a": {"linestyle": ":"}})
    losses = np.array([[3, 2, 1.5], [2.5, 1.8, 1.2]])
    runs.ablation_figure(tmp_path / "ablation.png", losses, (1e4 / losses).astype(int), (2, 4), (0.1, 0.2), "grid")
    assert len(list(tmp_path.iterdir())) == 2


def test_figures_of_counts(tmp_path):
    full_rank.rank_figure(tmp_path / "rank.png", full_rank.ranks(12, 2, (0.5, 1), 3), "small")
    counting.counting_figure(tmp_path / "counting.png", tuple(np.array([[8, 2], [1.5, 1.5], [1.4, 1.0]])), "n + 1")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(("flags", "words"), [
    (["--only", "nothing"], ["--only", "nothing", "spectrum"]),
    (["--steps", "0"], ["--steps 0", "at least 1"]),
    (["--step", "3"], ["--step"]),
    (["--out", "{file}/below"], ["--out", "cannot be written"]),
])
def test_command_refuses(tmp_path, capsys, flags, words):
    (tmp_path / "file").write_text("")
    assert run_command(command.main, [flag.replace("{file}", str(tmp_path / "file")) for flag in flags]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line


test_mutants_of_numbers = mutant_tests([
    (spectrum.best_low_rank, "sigma[:rank]", "sigma[-rank:]"),
    (spectrum.best_low_rank, "root[:, None] * Vt", "Vt"),
    (spectrum.spectrum, "np.arange(1, W.size + 1)", "np.arange(W.size)"),
    (spectrum.spectrum, "np.abs(residual)", "residual"),
    (parts.split, "s * B @ A", "B @ A"),
    (parts.by_direction, "svd(L + S", "svd(L"),
    (parts.cancellation, "X @ part.T", "part"),
    (parts.cancellation, "norm(L) + norm(S)", "norm(L + S)"),
    (full_rank.matching, ">= 0", "> 0"),
    (full_rank.ranks, "BA + S", "BA"),
    (full_rank.ranks, "i, t)", "i)"),
    (eight_bits.rounded, "table[high] - x,", "table[high],"),
    (eight_bits.underflow, "v[i : i + block]", "v"),
    (eight_bits.adam_with, "(m, v)}", "(v, m)}"),
    (counting.as_published, "0.0, 1", "0.0, 0"),
    (counting.batches_of, " + 1", ""),
    (counting.corrected, "(batches + 1) / batches", "batches / (batches + 1)"),
], check_spectrum, check_parts, check_matching, check_maps, check_counting)

test_mutants_of_runs = mutant_tests([
    (supports.largest_of, "-np.abs(W - B @ A)", "-np.abs(W)"),
    (supports.largest_of, "-np.abs", "np.abs"),
    (supports.at_random, '"support", path', '"support"'),
    (supports.from_dense, " / W.dtype.type(layer.scale)", ""),
    (supports.from_dense, 'p.requires_grad = name.endswith("sparse_value")', "pass"),
    (supports.from_dense, "with_support(choose)(model)", "pass"),
    (runs.ablation, "alpha=scale * rank", "alpha=scale"),
    (job.train, "batches(step - 1)", "batches(0)"),
    (job.train, "np.arange(1, checks + 1)", "np.arange(checks)"),
], check_job, check_supports, check_ablation)

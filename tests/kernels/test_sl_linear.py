"""Every backend and algorithm of the sparse-plus-low-rank product equals the dense computation."""

from unittest.mock import patch

import numpy as np
import pytest
from kernel_checks import ALGORITHMS, BACKENDS, OUT, SCALE, SUPPORTS, WIDTH, check_product, check_sparse, check_views, problem

from minisl import kernels
from minisl.errors import InputError
from minisl.kernels import Support, numpy_backend

on_each_backend = pytest.mark.parametrize("backend", BACKENDS, indirect=True)


@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@on_each_backend
def test_product_and_gradients(support, algorithm, backend):
    check_product(support, algorithm)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@on_each_backend
def test_float32_stays_float32(algorithm, backend):
    check_product("unsorted", algorithm, np.float32, 1e-5)


@pytest.mark.parametrize("support", SUPPORTS)
@on_each_backend
def test_sparse_products(support, backend):
    check_sparse(support)


@pytest.mark.parametrize("support", SUPPORTS)
def test_views_of_the_support(support):
    check_views(support)


@on_each_backend
def test_leading_axes_and_a_prepared_support(backend):
    dy, x, B, A, v, index = problem("sorted")
    where = Support(index, (OUT, WIDTH))
    y = kernels.sl_linear(x.reshape(2, 2, WIDTH), B, A, v, where, SCALE)
    assert y.shape == (2, 2, OUT)
    np.testing.assert_array_equal(y.reshape(4, OUT), kernels.sl_linear(x, B, A, v, index, SCALE))
    dx, *_ = kernels.sl_linear_backward(dy.reshape(2, 2, OUT), x.reshape(2, 2, WIDTH), B, A, v, where, SCALE)
    assert dx.shape == (2, 2, WIDTH)


def test_sddmm_over_several_slices():
    """NumPy's, two entries at a time."""
    with kernels.using("numpy"), patch.object(numpy_backend, "CHUNK", 8):
        check_sparse("everything")


def test_materialised_equals_factored_at_a_real_size(backend):
    rng = np.random.default_rng(0)
    out, width, r, n = 96, 64, 16, 50
    index = np.sort(rng.choice(out * width, 184, replace=False)).astype(np.int32)
    dy, x, B, A, v = (rng.standard_normal(s) for s in ((n, out), (n, width), (out, r), (r, width), 184))
    one, two = ([kernels.sl_linear(x, B, A, v, index, 0.5, algorithm=a),
                 *kernels.sl_linear_backward(dy, x, B, A, v, index, 0.5, algorithm=a)] for a in ("materialised", "factored"))
    for a, b in zip(one, two):
        assert np.abs(a - b).max() <= 1e-12 * np.abs(b).max()


@pytest.mark.parametrize(("change", "error", "match"), [
    ({"x": np.zeros((4, 6))}, ValueError, r"A has shape \(3, 7\), must be \(3, 6\) beside x \(4, 6\)"),
    ({"B": np.zeros((5, 2))}, ValueError, r"A has shape \(3, 7\), must be \(2, 7\)"),
    ({"v": np.zeros(3)}, ValueError, r"values has shape \(3,\), the support 7 positions"),
    ({"index": np.array([35])}, ValueError, r"0\.\.34"), ({"index": np.array([-1])}, ValueError, "-1"),
    ({"index": np.zeros(7)}, TypeError, "integers")])
def test_shapes_that_do_not_fit(change, error, match):
    _, x, B, A, v, index = problem("sorted")
    given = {"x": x, "B": B, "A": A, "v": v, "index": index} | change
    with pytest.raises(error, match=match):
        kernels.sl_linear(given["x"], given["B"], given["A"], given["v"], given["index"], SCALE)


def test_gradient_of_the_wrong_shape():
    _, x, B, A, v, index = problem("sorted")
    with pytest.raises(ValueError, match=r"dy \(4, 4\)"):
        kernels.sl_linear_backward(np.zeros((4, 4)), x, B, A, v, index, SCALE)


def test_names_that_do_not_exist():
    _, x, B, A, v, index = problem("sorted")
    with pytest.raises(InputError, match="allowed: auto, reference, numpy, cpu"):
        kernels.sl_linear(x, B, A, v, index, SCALE, backend="cupy?")
    with pytest.raises(InputError, match="materialised, factored"):
        kernels.sl_linear(x, B, A, v, index, SCALE, algorithm="fast")


@pytest.mark.parametrize("change", ["x", "g", "values", "dy", "rows", "W"])
@on_each_backend
def test_sparse_products_of_shapes_that_do_not_fit(change, backend):
    """A wrong width would be read past the array's end."""
    rng = np.random.default_rng(0)
    shapes = {"x": (4, WIDTH), "g": (4, OUT), "values": (3,), "dy": (4, OUT), "rows": (4, WIDTH), "W": (OUT, WIDTH)}
    where = Support(np.array([1, 5, 8]), (OUT, WIDTH))

    def compute(a):
        kernels.spmm(a["x"], a["values"], where)
        kernels.spmm(a["g"], a["values"], where, transpose=True)
        kernels.sddmm(a["dy"], a["rows"], where)
        kernels.scatter_add(a["W"], a["values"], where)

    arrays = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    compute(arrays)
    for wrong in ((*shapes[change][:-1], shapes[change][-1] + 1), (*shapes[change][:-1], shapes[change][-1] - 1)):
        with pytest.raises(ValueError, match="has shape"):
            compute(arrays | {change: rng.standard_normal(wrong)})
    with pytest.raises(ValueError, match=r"x has shape \(4, 7\), must be \(3, in\) beside dy \(3, 5\)"):
        compute(arrays | {"dy": rng.standard_normal((3, OUT))})

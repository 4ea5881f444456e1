"""What the emulator counts, against numbers worked out by hand; and that a picture of it can be made."""

import numpy as np
import pytest
from gpu import needs_compiler

from minisl.kernels.cuda import emulator
from minisl.kernels.cuda.emulator.trace import ATOMIC, READ, WRITE

pytestmark = needs_compiler

ACCESSES = r"""
extern "C" __global__ void read(const float* x, float* y, int stride, int first) {
    y[threadIdx.x] = x[first + stride * threadIdx.x];
}
extern "C" __global__ void wide(const float4* x, float* y) {
    const float4 v = x[threadIdx.x];
    y[threadIdx.x] = v.x + v.w;
}
extern "C" __global__ void bank(float* y, int stride) {
    __shared__ float s[1056];
    for (int k = threadIdx.x; k < 1056; k += blockDim.x) s[k] = k;
    __syncthreads();
    y[threadIdx.x] = s[stride * threadIdx.x];
}
extern "C" __global__ void wide_bank(float* y, int stride) {
    __shared__ __align__(16) float s[512];
    for (int k = threadIdx.x; k < 512; k += blockDim.x) s[k] = k;
    __syncthreads();
    const float4 v = *(const float4*)&s[stride * threadIdx.x];
    y[threadIdx.x] = v.x;
}
extern "C" __global__ void count(int* n) {
    atomicAdd(&n[0], 1);
    if (threadIdx.x < 3) n[1 + threadIdx.x] = n[1 + threadIdx.x] + 1;
}
"""


def launched(kernel, *args, threads=32, grid=1):
    with emulator.record() as launches:
        emulator.RawModule(code=ACCESSES).get_function(kernel)((grid,), (threads,), args)
    return launches[0]


def floats(n):
    return np.zeros(n, np.float32)


@pytest.mark.parametrize(("stride", "first", "moved", "ideal"),
                         [(1, 0, 4, 4), (1, 4, 5, 4), (2, 0, 8, 4), (8, 0, 32, 4), (0, 3, 1, 1)])
def test_sectors_of_a_warp(stride, first, moved, ideal):
    seen = launched("read", floats(256), floats(32), stride, first).summary("x")
    assert seen == {"reads": 32, "writes": 0, "atomics": 0, "requests": 1, "moved": moved, "ideal": ideal}


def test_each_warp_of_each_block_asks_for_itself():
    launch = launched("read", floats(256), floats(70), 1, 0, threads=70, grid=1)
    assert launch.summary("x") | launch.summary("y") == {
        "reads": 0, "writes": 70, "atomics": 0, "requests": 3, "moved": 4 + 4 + 1, "ideal": 9}


def test_a_wide_load_is_one_access():
    seen = launched("wide", floats(128), floats(32)).summary("x")
    assert seen == {"reads": 32, "writes": 0, "atomics": 0, "requests": 1, "moved": 16, "ideal": 16}


@pytest.mark.parametrize(("stride", "cycles"), [(0, 1), (1, 1), (2, 2), (8, 8), (32, 32), (33, 1)])
def test_cycles_of_the_banks(stride, cycles):
    seen = launched("bank", floats(32), stride).summary("s")
    assert seen["cycles"] - 33 == cycles  # 1056 / 32 stores side by side
    assert seen["ideal"] == 34


@pytest.mark.parametrize(("stride", "cycles"), [(4, 4), (8, 8), (16, 16)])
def test_wide_loads_are_served_a_quarter_at_a_time(stride, cycles):
    """Eight lanes of 16 bytes fill the banks; twice as far apart, each quarter meets half of them twice."""
    assert launched("wide_bank", floats(32), stride).summary("s")["cycles"] == 16 + cycles


def test_atomics_and_turns():
    launch = launched("count", np.zeros(4, np.int32), threads=32)
    array, table = launch.of_array("n")
    assert (array.name, array.shape, array.shared) == ("n", (4,), False)
    assert [int((table["use"] == use).sum()) for use in (READ, WRITE, ATOMIC)] == [3, 3, 32]
    assert sorted(table["element"][table["use"] == WRITE]) == [1, 2, 3]
    assert launch.summary("n")["requests"] == 3
    loop = launched("bank", floats(32), 1)
    assert loop.of_array("s")[1]["turn"].max() == 32  # the 33rd store of a thread


def test_unknown_array():
    with pytest.raises(ValueError, match="read has no array z; it has x, y"):
        launched("read", floats(32), floats(32), 1, 0).summary("z")


def test_limit_and_selection():
    module = emulator.RawModule(code=ACCESSES)
    with emulator.record(kernels=["wide"], limit=10) as launches:
        module.get_function("read")((1,), (32,), (floats(32), floats(32), 1, 0))
        module.get_function("wide")((1,), (32,), (floats(128), floats(32)))
    assert [(launch.kernel, len(launch.accesses)) for launch in launches] == [("wide", 10)]


@pytest.mark.parametrize("kernel", ["read", "bank"])
def test_picture(kernel, tmp_path):
    from minisl.kernels.cuda.emulator.draw import draw

    args = (floats(256), floats(32), 8, 0) if kernel == "read" else (floats(32), 32)
    draw(launched(kernel, *args), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_picture_says_what_it_costs(tmp_path, monkeypatch):
    from minisl.kernels.cuda.emulator import draw

    figures = []
    monkeypatch.setattr(draw, "finish", lambda plt, figure, path: figures.append(figure))
    draw.draw(launched("read", floats(256), floats(32), 8, 0), tmp_path / "a.png")
    titles = [axes.get_title(loc="left") for axes in figures[0].axes]
    assert "x (256, global): 32 reads; 32 sectors, 4 would do" in titles
    assert "line 3: 32 sectors for 32 lanes" in titles
    cells = next(axes for axes in figures[0].axes if axes.get_title(loc="left").startswith("x (")).images[0].get_array()
    assert np.ma.filled(cells, np.nan)[0, 8] == 1  # element 8 is thread 1's
    import matplotlib.pyplot as plt

    plt.close("all")

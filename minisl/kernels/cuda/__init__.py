"""The GPU's kernels as a backend: "cuda" for CuPy arrays, "emulator" for NumPy arrays, float32 both, from the same .cu files.

    OP_N.cu        rung N of an operation's ladder: text to read, in order, one diff at a time
    ladder.py      which rung runs
    launch.py      compile a rung, check its arguments, run it on the GPU or in the emulator
    sparse.py      the sparse-plus-low-rank product: grids, and the order of S's entries
    rows.py        the fused ops: grids, and how heads lie in memory
    in_numba/      some of the ladders in Numba CUDA
    emulator/      CUDA C++ on a CPU, every access watched
"""

from minisl.kernels.cuda.rows import (  # noqa: F401
    adam8bit,
    adamw,
    attention,
    attention_backward,
    cross_entropy,
    cross_entropy_backward,
    linear_cross_entropy,
    rms_norm,
    rms_norm_backward,
    rope,
    square_sum,
    swiglu,
    swiglu_backward,
)
from minisl.kernels.cuda.sparse import (  # noqa: F401
    dense,
    factored_backward,
    factored_forward,
    fused_backward,
    fused_forward,
    materialised_backward,
    materialised_forward,
    scatter_add,
    sddmm,
    spmm,
)
from minisl.kernels.numpy_fused import embedding_backward, linear, linear_backward  # noqa: F401  cuBLAS's, and CuPy's own

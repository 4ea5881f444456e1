"""What students write for a4: MISTAKES that must be named, and OTHERS that are right, by task (see a1_engine.py)."""


def cuda(task, header, body):
    """The cell of a CUDA task with this body of the kernel."""
    return f'def {task}():\n    return r"""\nextern "C" __global__ void {header} {{{body}}}\n"""\n'


SPMM = "spmm(const float* x, const float* values, const int* columns, const int* starts, float* y, int n, int width, int out)"
SCATTER = SPMM.replace("spmm", "scatter").replace("* x", "* g").replace("* y", "* d")
SDDMM = """sddmm(const float* g, const float* x, const int* rows, const int* columns,
    float* dv, int n, int width, int out, int entries)"""

MISTAKES = {
    "spmm": [
        ("the place for the column", "* x[t, columns[p]]", "* x[t, p]", "x[t, p] is read, should be x[t, columns[p]]"),
        ("the row for the column", "d[t, columns[k]] +=", "d[t, row] +=",
         "added to d[t, row of p], should be d[t, columns[p]]"),
        ("the place for the column, transposed", "d[t, columns[k]] +=", "d[t, k] +=",
         "added to d[t, p], should be d[t, columns[p]]"),
        ("off by one", "range(starts[i], starts[i + 1])", "range(starts[i], starts[i + 1] - 1)",
         "the last entry of each row is missing"),
        ("off by one at the start", "range(starts[row], starts[row + 1])", "range(starts[row] + 1, starts[row + 1])",
         "the first entry of each row is missing"),
        ("one entry a row", "range(starts[i], starts[i + 1])", "range(starts[i], min(starts[i] + 1, starts[i + 1]))",
         "only the first entry of each row counts"),
        ("= for +=", "y[t, i] +=", "y[t, i] =", "only the last entry of each row counts"),
        ("the values forgotten", "values[p] * x", "x", "values[p] is not used"),
        ("subtracted", "d[t, columns[k]] +=", "d[t, columns[k]] -=", "the wrong sign"),
        ("transposed", "    return y", "    return y.T", "transposed"),
        ("nothing returned", "    return d", "    return None", "does the function return it?"),
        ("always float64", "np.zeros((len(x), len(starts) - 1), x.dtype)", "np.zeros((len(x), len(starts) - 1))", "float64"),
        ("not compiled", "@njit\ndef spmm(", "def spmm(", "is it compiled (@njit)?"),
        ("not compiled, transposed", "@njit\ndef spmm_transposed(", "def spmm_transposed(", "is it compiled (@njit)?"),
        ("the sum goes on", None, """
from numba import njit


@njit
def spmm(x, values, columns, starts):
    y = np.zeros((len(x), len(starts) - 1), x.dtype)
    for t in range(len(x)):
        total = 0.0
        for i in range(len(starts) - 1):
            for p in range(starts[i], starts[i + 1]):
                total += values[p] * x[t, columns[p]]
            y[t, i] = total
    return y
""", "start it at 0 for each"),
        ("the sum goes on through the tokens", None, """
from numba import njit


@njit
def spmm(x, values, columns, starts):
    y = np.zeros((len(x), len(starts) - 1), x.dtype)
    for i in range(len(starts) - 1):
        total = 0.0
        for t in range(len(x)):
            for p in range(starts[i], starts[i + 1]):
                total += values[p] * x[t, columns[p]]
            y[t, i] = total
    return y
""", "from one token to the next"),
        ("one sum", None, """
from numba import njit


@njit
def spmm(x, values, columns, starts):
    y, total = np.zeros((len(x), len(starts) - 1), x.dtype), 0.0
    for t in range(len(x)):
        for i in range(len(starts) - 1):
            for p in range(starts[i], starts[i + 1]):
                total += values[p] * x[t, columns[p]]
            y[t, i] = total
    return y
""", "one sum goes on through all rows and tokens"),
        ("the dense matrix", None, """
from numba import njit


@njit
def spmm(x, values, columns, starts):
    S = np.zeros((len(starts) - 1, x.shape[1]), x.dtype)
    for i in range(len(S)):
        for p in range(starts[i], starts[i + 1]):
            S[i, columns[p]] = values[p]
    return x @ S.T


@njit
def spmm_transposed(g, values, columns, starts, width):
    d = np.zeros((len(g), width), g.dtype)
    for t in range(len(g)):
        for i in range(len(starts) - 1):
            for p in range(starts[i], starts[i + 1]):
                d[t, columns[p]] += values[p] * g[t, i]
    return d
""", "as large as the dense S"),
        ("not started at 0", "np.zeros((len(g), width), g.dtype)", "np.full((len(g), width), 1e30, g.dtype)",
         "started at 0?"),  # what np.empty may hold
        ("into the columns", "    return d", "    columns[0] = 0\n    return d", "columns was changed"),
    ],
    "sddmm": [
        ("the column for the row", "g[t, i]", "g[t, columns[p]]", "should be g[t, row of p]"),
        ("= for +=", "dv[p] +=", "dv[p] =", "only the last token counts"),
        ("a token lost", "range(len(x))", "range(len(x) - 1)", "the last token is missing"),
        ("the first token lost", "range(len(x))", "range(1, len(x))", "the first token is missing"),
        ("the mean", "    return dv", "    return dv / len(x)", "the mean over the tokens"),
        ("off by one", "starts[i + 1])", "starts[i + 1] - 1)", "the last entry of each row is missing"),
        ("no g", "g[t, i] * x", "x", "G is missing"),
        ("no x", " * x[t, columns[p]]", "", "X is missing"),
        ("subtracted", "dv[p] +=", "dv[p] -=", "sign"),
        ("nothing returned", "    return dv", "    return None", "does the function return it?"),
        ("the whole matrix", None, """
def sddmm(g, x, columns, starts):
    return g.T @ x
""", "1 axis more"),
        ("not compiled", "@njit\n", "", "is it compiled (@njit)?"),
        ("always float64", "x.dtype", "np.float64", "float64"),
        ("the sum goes on", None, """
@njit
def sddmm(g, x, columns, starts):
    dv, total = np.zeros(len(columns), x.dtype), 0.0
    for i in range(len(starts) - 1):
        for p in range(starts[i], starts[i + 1]):
            for t in range(len(x)):
                total += g[t, i] * x[t, columns[p]]
            dv[p] = total
    return dv
""".replace("@njit", "from numba import njit\n\n\n@njit"), "start it at 0 for each"),
        ("the row before", None, """
from numba import njit


@njit
def sddmm(g, x, columns, starts):
    dv = np.zeros(len(columns), x.dtype)
    for p in range(len(columns)):
        i = np.searchsorted(starts, p) - 1
        for t in range(len(x)):
            dv[p] += g[t, i] * x[t, columns[p]]
    return dv
""", "the row of p is too small at the first entry of each row"),
        ("all of G^T X, compiled", None, """
from numba import njit


@njit
def sddmm(g, x, columns, starts):
    m, dv = np.ascontiguousarray(g.T) @ x, np.zeros(len(columns), x.dtype)
    for i in range(len(starts) - 1):
        for p in range(starts[i], starts[i + 1]):
            dv[p] = m[i, columns[p]]
    return dv
""", "as large as the dense S"),
    ],
    "spmm_cuda": [
        ("no bounds", "    if (i >= out || t >= n) return;\n", "", "OutOfBounds"),
        ("no bound for tokens", "if (i >= out || t >= n)", "if (i >= out)", "OutOfBounds"),
        ("a bound off by one", "i >= out", "i > out", "OutOfBounds"),
        ("no block", "blockIdx.x * blockDim.x + threadIdx.x", "threadIdx.x", "is blockIdx used in the index?"),
        ("one entry too many", "p < starts[i + 1]", "p <= starts[i + 1]", "OutOfBounds"),
        ("one entry too few", "p < starts[i + 1]", "p < starts[i + 1] - 1", "the last entry of each row is missing"),
        ("the place for the column", "columns[p]]", "p]", "OutOfBounds"),
        ("the place in the row for the column", "columns[p]]", "p - starts[i]]", "columns[p] is not used"),
        ("added to what is not zero", "y[t * out + i] = sum", "y[t * out + i] += sum", "added to what y held before"),
        ("y transposed", "y[t * out + i]", "y[i * n + t]", "Y is written transposed"),
        ("x transposed", "x[t * width + columns[p]]", "x[columns[p] * n + t]", "X is read transposed"),
        ("another stride", "x[t * width", "x[t * out", "OutOfBounds"),
        ("values forgotten", "values[p] * x", "x", "values[p] is not used"),
        ("not written", "    y[t * out + i] = sum;\n", "", "nothing was written to y"),
        ("x and y exchanged", None, cuda("spmm_cuda", SPMM, """
    const int t = blockIdx.x * blockDim.x + threadIdx.x, i = blockIdx.y * blockDim.y + threadIdx.y;
    if (i >= out || t >= n) return;
    float sum = 0;
    for (int p = starts[i]; p < starts[i + 1]; ++p) sum += values[p] * x[t * width + columns[p]];
    y[t * out + i] = sum;
"""), "the launch has x for rows, y for tokens"),
        ("some not written", "t >= n) return", "t >= n - 1) return", "still hold the 7 from before"),
        ("a loop without end", "; ++p)", ";)", "does a loop never end?"),
        ("no semicolon", "float sum = 0;", "float sum = 0", "the compiler says: spmm.cu:8"),
        ("an unknown name", "float sum = 0;", "float s = 0;", "'sum' was not declared"),
        ("another kernel's name", "__global__ void spmm(", "__global__ void product(", "no kernel `__global__ void spmm(...)`"),
        ("no global", "__global__ ", "", "no kernel `__global__ void spmm(...)`"),
        ("a parameter too many", "int n, int width, int out)", "int n, int width, int out, int entries)",
         "spmm takes 9 arguments"),
        ("not extern", 'extern "C" ', "", 'extern "C" is missing'),
        ("the text not returned", "    return r", "    text = r", "does the function return it?"),
    ],
    "scatter_cuda": [
        ("a plain sum", "atomicAdd(&d[t * width + columns[p]], values[p] * g[t * out + i])",
         "d[t * width + columns[p]] += values[p] * g[t * out + i]", "Race"),
        ("written, not added", "atomicAdd(&d[t * width + columns[p]], values[p] * g[t * out + i])",
         "d[t * width + columns[p]] = values[p] * g[t * out + i]", "Race"),
        ("no bounds", "    if (i >= out || t >= n) return;\n", "", "OutOfBounds"),
        ("no bound for rows", "if (i >= out || t >= n)", "if (t >= n)", "OutOfBounds"),
        ("no block", "blockIdx.y * blockDim.y + threadIdx.y", "threadIdx.y", "blockIdx.y is not used"),
        ("no block for rows", "blockIdx.x * blockDim.x + threadIdx.x", "threadIdx.x", "blockIdx.x is not used"),
        ("one entry too few", "p < starts[i + 1]", "p < starts[i + 1] - 1", "the last entry of each row is missing"),
        ("one entry too many", "p < starts[i + 1]", "p <= starts[i + 1]", "OutOfBounds"),
        ("another stride", "t * width", "t * out", "OutOfBounds"),
        ("the place for the column", "columns[p]], ", "p]], ".replace("]]", "]"), "OutOfBounds"),
        ("the place in the row for the column", "+ columns[p]", "+ p - starts[i]", "columns[p] is not used"),
        ("no g", " * g[t * out + i]", "", "G is missing"),
        ("no values", "values[p] * g", "g", "values[p] is not used"),
        ("g transposed", "g[t * out + i]", "g[i * n + t]", "G is read transposed"),
        ("subtracted", ", values[p]", ", -values[p]", "subtracted, should be added"),
        ("a value, not an address", "&d[", "d[", "it takes an address: &d[k]"),
        ("no block for tokens, written", None, cuda("scatter_cuda", SCATTER, """
    const int i = blockIdx.x * blockDim.x + threadIdx.x, t = threadIdx.y;
    if (i >= out || t >= n) return;
    for (int p = starts[i]; p < starts[i + 1]; ++p) d[t * width + columns[p]] += values[p] * g[t * out + i];
"""), "no barrier helps"),
        ("a loop without end", "; ++p)", ";)", "does a loop never end?"),
    ],
    "sddmm_cuda": [
        ("no barrier before the pairs", "    __syncthreads();  // all sums are there\n", "", "is a __syncthreads() missing"),
        ("no barrier between the pairs", "        __syncthreads();  // all pairs are done\n", "", "Race"),
        ("a barrier for some", "if (s < h) part[s] += part[s + h];\n        __syncthreads();",
         "if (s < h) { part[s] += part[s + h]; __syncthreads(); }", "BarrierDivergence"),
        ("those without a token leave", "    float sum = 0;\n", "    if (s >= n) return;\n    float sum = 0;\n",
         "BarrierDivergence"),
        ("those without a token write nothing", "    part[s] = sum;", "    if (s < n) part[s] = sum;", "Uninitialised"),
        ("the last step", "h > 0", "h > 1", "the last step of the pairs (h = 1) is missing"),
        ("the first step", "int h = 32", "int h = 16", "the first step of the pairs"),
        ("one round", "t < n; t += 64", "t < min(n, 64); t += 64", "only the first 64 tokens count"),
        ("all add to one", "part[s] = sum;", "part[s] = 0; __syncthreads(); part[0] += sum;", "Race"),
        ("all write", "if (s == 0) dv[k] = part[0]", "dv[k] = part[s]", "let one thread write (if (s == 0))"),
        ("no semicolon before a barrier", "    part[s] = sum;", "    part[s] = sum", "before '__syncthreads'"),
        ("one sum", "if (s == 0) dv[k] = part[0]", "if (s == 0) dv[k] = sum", "only thread 0's sum is there"),
        ("the mean", "dv[k] = part[0]", "dv[k] = part[0] / n", "the mean over the tokens"),
        ("not written", "    if (s == 0) dv[k] = part[0];\n", "", "nothing was written to dv"),
        ("every token by every thread", "int t = s; t < n; t += 64", "int t = 0; t < n; ++t", "times what it should be"),
        ("no bound", "for (int t = s; t < n; t += 64)", "for (int t = s; t < n + 64; t += 64)", "OutOfBounds"),
        ("an array too small", "part[64]", "part[32]", "past the end of a fixed array"),
        ("a pair too far", "if (s < h) part", "part", "past the end of a fixed array"),
        ("one thread for all", None, cuda("sddmm_cuda", SDDMM, """
    const int k = blockIdx.x;
    if (threadIdx.x > 0) return;
    float sum = 0;
    for (int t = 0; t < n; ++t) sum += g[t * out + rows[k]] * x[t * width + columns[k]];
    dv[k] = sum;
"""), "share out the tokens among the 64 threads"),
    ],
    "sddmm_coalesced_cuda": [
        ("no barrier", "    __syncthreads();\n", "", "is a __syncthreads() missing"),
        ("a barrier for some", "    if (k < entries) {", "    if (k >= entries) return;\n    {",
         "Every thread of a block must come to each __syncthreads()"),
        ("no bound", "    if (k < entries) {", "    {", "OutOfBounds"),
        ("no bound at the end", "if (w == 0 && k < entries)", "if (w == 0)", "OutOfBounds"),
        ("one warp's sum", " + part[1][threadIdx.x] + part[2][threadIdx.x] + part[3][threadIdx.x]", "",
         "only the first warp's tokens are there"),
        ("three warps' sums", " + part[3][threadIdx.x]", "", "the tokens of the last warp are missing"),
        ("four times", "int t = w; t < n; t += 4", "int t = 0; t < n; ++t", "each warp sums all tokens"),
        ("one round", "t < n; t += 4", "t < min(n, 4); t += 4", "only the first 4 tokens count"),
        ("no block", "blockIdx.x * 32 + threadIdx.x", "threadIdx.x", "is blockIdx used in the index?"),
        ("every warp writes its sum", "if (w == 0 && k < entries)", "if (k < entries)", "Race"),
        ("lanes are tokens", None, cuda("sddmm_coalesced_cuda", SDDMM, """
    __shared__ float part[4][32];
    const int lane = threadIdx.x, w = threadIdx.y;
    for (int k = blockIdx.x * 32 + w; k < min(entries, blockIdx.x * 32 + 32); k += 4) {
        const int i = rows[k], j = columns[k];
        float sum = 0;
        for (int t = lane; t < n; t += 32) sum += g[t * out + i] * x[t * width + j];
        part[w][lane] = sum;
        __syncwarp();
        if (lane == 0) {
            for (int q = 1; q < 32; ++q) sum += part[w][q];
            dv[k] = sum;
        }
        __syncwarp();
    }
"""), "too many sectors"),
        ("one warp does all", None, cuda("sddmm_coalesced_cuda", SDDMM, """
    const int k = blockIdx.x * 32 + threadIdx.x;
    if (threadIdx.y > 0 || k >= entries) return;
    const int i = rows[k], j = columns[k];
    float sum = 0;
    for (int t = 0; t < n; ++t) sum += g[t * out + i] * x[t * width + j];
    dv[k] = sum;
"""), "share out the tokens among the 4 warps"),
    ],
    "spmm_coalesced_cuda": [
        ("no barrier", "    __syncthreads();\n", "", "is a __syncthreads() missing"),
        ("those without a token leave early", "    __syncthreads();\n    if (lane >= tokens) return;",
         "    if (lane >= tokens) return;\n    __syncthreads();", "BarrierDivergence"),
        ("copied past the end", "tokens = min(32, n - first)", "tokens = 32", "OutOfBounds"),
        ("written past the end", "    if (lane >= tokens) return;\n", "", "Uninitialised"),
        ("all blocks read the first tokens", "x[first * width + q]", "x[q]", "all blocks read the first 32 tokens"),
        ("all blocks write the first tokens", "y[(first + lane) * out + i]", "y[lane * out + i]", "Race"),
        ("one warp's rows", "i < out; i += 4", "i < 4; i += 4", "only the rows 0, 1, 2 and 3 are written"),
        ("every warp does every row", "int i = threadIdx.y; i < out; i += 4", "int i = 0; i < out; ++i", "Race"),
        ("off by one", "end = starts[i + 1]", "end = starts[i + 1] - 1", "the last entry of each row is missing"),
        ("one entry too many", "p < end", "p <= end", "OutOfBounds"),
        ("added to what is not zero", "i] = sum", "i] += sum", "added to what y held before"),
        ("a tile too narrow", "tile[32][129]", "tile[32][32]", "Compare each with its size"),
        ("the text of task 3", None, cuda("spmm_coalesced_cuda", SPMM, """
    const int i = blockIdx.x * blockDim.x + threadIdx.x, t = blockIdx.y * blockDim.y + threadIdx.y;
    if (i >= out || t >= n) return;
    float sum = 0;
    for (int p = starts[i]; p < starts[i + 1]; ++p) sum += values[p] * x[t * width + columns[p]];
    y[t * out + i] = sum;
"""), "still hold the 7 from before"),
        ("the sum goes on", None, cuda("spmm_coalesced_cuda", SPMM, """
    __shared__ float tile[32][129];
    const int first = blockIdx.x * 32, lane = threadIdx.x, s = threadIdx.y * 32 + lane, tokens = min(32, n - first);
    for (int q = s; q < tokens * width; q += 128) tile[q / width][q % width] = x[first * width + q];
    __syncthreads();
    float sum = 0;
    for (int i = threadIdx.y; i < out && lane < tokens; i += 4) {
        for (int p = starts[i]; p < starts[i + 1]; ++p) sum += values[p] * tile[lane][columns[p]];
        y[(first + lane) * out + i] = sum;
    }
"""), "from one of a warp's rows to the next"),
        ("part of the tile", "q < tokens * width", "q < min(128, tokens * width)", "Uninitialised"),
        ("tokens and columns exchanged", "tile[lane][columns[p]]", "tile[columns[p]][lane]", "reads tile["),
        ("a tile too large", "tile[32][129]", "tile[128][129]", "bytes of shared memory"),
        ("no tile", None, cuda("spmm_coalesced_cuda", SPMM, """
    const int t = blockIdx.x * 32 + threadIdx.x;
    if (t >= n) return;
    for (int i = threadIdx.y; i < out; i += 4) {
        float sum = 0;
        for (int p = starts[i]; p < starts[i + 1]; ++p) sum += values[p] * x[t * width + columns[p]];
        y[t * out + i] = sum;
    }
"""), "too many sectors"),
        ("copied a row a lane", "tile[q / width][q % width] = x[first * width + q]",
         "tile[q % tokens][q / tokens] = x[first * width + q % tokens * width + q / tokens]", "too many sectors"),
        ("lanes are rows", None, cuda("spmm_coalesced_cuda", SPMM, """
    __shared__ float tile[32][129];
    const int first = blockIdx.x * 32, s = threadIdx.y * 32 + threadIdx.x, tokens = min(32, n - first);
    for (int q = s; q < tokens * width; q += 128) tile[q / width][q % width] = x[first * width + q];
    __syncthreads();
    for (int t = threadIdx.y; t < tokens; t += 4)
        for (int i = threadIdx.x; i < out; i += 32) {
            float sum = 0;
            for (int p = starts[i]; p < starts[i + 1]; ++p) sum += values[p] * tile[t][columns[p]];
            y[(first + t) * out + i] = sum;
        }
"""), "too many sectors"),
    ],
}

OTHERS = {
    "spmm": {
        "a row at a time, all tokens": """
from numba import njit


@njit
def spmm(x, values, columns, starts):
    y = np.zeros((len(x), len(starts) - 1), x.dtype)
    for i in range(len(starts) - 1):
        for p in range(starts[i], starts[i + 1]):
            y[:, i] += values[p] * x[:, columns[p]]
    return y


@njit
def spmm_transposed(g, values, columns, starts, width):
    d = np.zeros((len(g), width), g.dtype)
    for i in range(len(starts) - 1):
        for p in range(starts[i], starts[i + 1]):
            d[:, columns[p]] += values[p] * g[:, i]
    return d
""",
        "sums in registers, entries with their rows": """
from numba import njit


@njit
def spmm(x, values, columns, starts):
    y = np.empty((len(x), len(starts) - 1), x.dtype)
    for t in range(len(x)):
        for i in range(len(starts) - 1):
            total = x.dtype.type(0)
            for p in range(starts[i], starts[i + 1]):
                total += values[p] * x[t, columns[p]]
            y[t, i] = total
    return y


@njit
def spmm_transposed(g, values, columns, starts, width):
    d, i = np.zeros((len(g), width), g.dtype), 0
    for p in range(len(values)):
        while p >= starts[i + 1]:
            i += 1
        for t in range(len(g)):
            d[t, columns[p]] += values[p] * g[t, i]
    return d
""",
        "turned": """
from numba import njit


@njit
def spmm(x, values, columns, starts):
    y = np.zeros((x.shape[0], starts.size - 1), x.dtype)
    for t in range(x.shape[0]):
        for i in range(starts.size - 1):
            for p in range(starts[i], starts[i + 1]):
                y[t, i] += values[p] * x[t, columns[p]]
    return y


@njit
def spmm_transposed(g, values, columns, starts, width):
    d = np.zeros((width, len(g)), g.dtype)
    turned = np.ascontiguousarray(g.T)
    for i in range(len(turned)):
        for p in range(starts[i], starts[i + 1]):
            for t in range(len(g)):
                d[columns[p], t] += values[p] * turned[i, t]
    return np.ascontiguousarray(d.T)
""",
    },
    "sddmm": {
        "tokens outside": """
from numba import njit


@njit
def sddmm(g, x, columns, starts):
    dv = np.zeros(len(columns), x.dtype)
    for t in range(len(x)):
        for i in range(len(starts) - 1):
            for p in range(starts[i], starts[i + 1]):
                dv[p] += g[t, i] * x[t, columns[p]]
    return dv
""",
        "dot products of turned rows": """
from numba import njit


@njit(fastmath=True)
def sddmm(g, x, columns, starts):
    gt, xt = g.T.copy(), x.T.copy()
    dv = np.empty(len(columns), x.dtype)
    for i in range(len(gt)):
        for p in range(starts[i], starts[i + 1]):
            total = x.dtype.type(0)
            for t in range(len(x)):
                total += gt[i, t] * xt[columns[p], t]
            dv[p] = total
    return dv
""",
        "NumPy sums of columns": """
from numba import njit


@njit
def sddmm(g, x, columns, starts):
    dv = np.zeros(columns.size, x.dtype)
    for i in range(starts.size - 1):
        for p in range(starts[i], starts[i + 1]):
            dv[p] = np.sum(g[:, i] * x[:, columns[p]])
    return dv
""",
    },
    "spmm_cuda": {
        "all threads numbered, in strides": cuda("spmm_cuda", SPMM, """
    const int block = blockIdx.y * gridDim.x + blockIdx.x, s = threadIdx.y * 16 + threadIdx.x;
    for (int q = block * 128 + s; q < n * out; q += gridDim.x * gridDim.y * 128) {
        const int t = q / out, i = q % out;
        float sum = 0;
        for (int p = starts[i]; p < starts[i + 1]; ++p) sum += values[p] * x[t * width + columns[p]];
        y[q] = sum;
    }
"""),
        "pointers, and the sum in double": cuda("spmm_cuda", SPMM, """
    int i = 16 * blockIdx.x + threadIdx.x, t = 8 * blockIdx.y + threadIdx.y;
    if (i < out && t < n) {
        const float *v = values + starts[i], *end = values + starts[i + 1];
        const int* c = columns + starts[i];
        double sum = 0;
        while (v < end) sum += (double)*v++ * x[t * width + *c++];
        y[t * out + i] = (float)sum;
    }
"""),
        "the first block row does all tokens": cuda("spmm_cuda", SPMM, """
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (blockIdx.y > 0 || i >= out) return;
    for (int t = threadIdx.y; t < n; t += blockDim.y) {
        float sum = 0;
        for (int p = starts[i]; p < starts[i + 1]; ++p) sum = fmaf(values[p], x[t * width + columns[p]], sum);
        y[t * out + i] = sum;
    }
"""),
        "a device function": cuda("spmm_cuda", SPMM, """
    const int i = blockIdx.x * blockDim.x + threadIdx.x, t = blockIdx.y * blockDim.y + threadIdx.y;
    if (i < out && t < n) y[t * out + i] = dot(values, columns, starts[i], starts[i + 1], &x[t * width]);
""").replace('extern "C"', """
__device__ float dot(const float* values, const int* columns, int begin, int end, const float* row) {
    float sum = 0;
    for (int p = begin; p < end; ++p) sum += values[p] * row[columns[p]];
    return sum;
}
extern "C\"""", 1),
    },
    "scatter_cuda": {
        "a thread per token, no atomics": cuda("scatter_cuda", SCATTER, """
    const int t = blockIdx.y * blockDim.y + threadIdx.y;
    if (blockIdx.x > 0 || threadIdx.x > 0 || t >= n) return;
    for (int i = 0; i < out; ++i)
        for (int p = starts[i]; p < starts[i + 1]; ++p) d[t * width + columns[p]] += values[p] * g[t * out + i];
"""),
        "a thread per element of d, which looks for its column": cuda("scatter_cuda", SCATTER, """
    const int t = blockIdx.y * blockDim.y + threadIdx.y;
    if (t >= n) return;
    for (int j = blockIdx.x * blockDim.x + threadIdx.x; j < width; j += gridDim.x * blockDim.x) {
        float sum = 0;
        for (int i = 0; i < out; ++i)
            for (int p = starts[i]; p < starts[i + 1]; ++p)
                if (columns[p] == j) sum += values[p] * g[t * out + i];
        d[t * width + j] += sum;
    }
"""),
        "all threads numbered, in strides": cuda("scatter_cuda", SCATTER, """
    const int threads = gridDim.x * gridDim.y * 128;
    int q = (blockIdx.y * gridDim.x + blockIdx.x) * 128 + threadIdx.y * 16 + threadIdx.x;
    for (; q < n * out; q += threads) {
        const float mine = g[q];
        for (int p = starts[q % out], end = starts[q % out + 1]; p < end; ++p)
            atomicAdd(d + q / out * width + columns[p], mine * values[p]);
    }
"""),
        "sums of a block in shared memory first": cuda("scatter_cuda", SCATTER, """
    __shared__ float sums[8][64];
    const int i = blockIdx.x * 16 + threadIdx.x, t = blockIdx.y * 8 + threadIdx.y;
    for (int first = 0; first < width; first += 64) {
        for (int j = threadIdx.x; j < 64; j += 16) sums[threadIdx.y][j] = 0;
        __syncthreads();
        if (i < out && t < n)
            for (int p = starts[i]; p < starts[i + 1]; ++p)
                if (columns[p] >= first && columns[p] < first + 64)
                    atomicAdd(&sums[threadIdx.y][columns[p] - first], values[p] * g[t * out + i]);
        __syncthreads();
        for (int j = threadIdx.x; j < 64 && first + j < width; j += 16)
            if (t < n) atomicAdd(&d[t * width + first + j], sums[threadIdx.y][j]);
        __syncthreads();
    }
"""),
    },
    "sddmm_cuda": {
        "the first thread adds up": cuda("sddmm_cuda", SDDMM, """
    __shared__ float part[64];
    const int k = blockIdx.x, i = rows[k], j = columns[k];
    part[threadIdx.x] = 0;
    for (int t = threadIdx.x; t < n; t += blockDim.x) part[threadIdx.x] += g[t * out + i] * x[t * width + j];
    __syncthreads();
    if (threadIdx.x > 0) return;
    float sum = 0;
    for (int s = 0; s < 64; ++s) sum += part[s];
    dv[k] = sum;
"""),
        "an atomic sum in shared memory": cuda("sddmm_cuda", SDDMM, """
    __shared__ float total;
    const int k = blockIdx.x;
    if (threadIdx.x == 0) total = 0;
    __syncthreads();
    for (int t = threadIdx.x; t < n; t += 64) atomicAdd(&total, g[t * out + rows[k]] * x[t * width + columns[k]]);
    __syncthreads();
    if (threadIdx.x == 0) dv[k] = total;
"""),
        "shuffles, then two warps": cuda("sddmm_cuda", SDDMM, """
    __shared__ float half[2];
    const int k = blockIdx.x, s = threadIdx.x;
    float sum = 0;
    for (int t = s; t < n; t += 64) sum += g[t * out + rows[k]] * x[t * width + columns[k]];
    for (int h = 16; h > 0; h /= 2) sum += __shfl_down_sync(0xffffffff, sum, h);
    if (s % 32 == 0) half[s / 32] = sum;
    __syncthreads();
    if (s == 0) dv[k] = half[0] + half[1];
"""),
        "pieces of neighbouring tokens, doubling distances": cuda("sddmm_cuda", SDDMM, """
    __shared__ float part[64];
    const int k = blockIdx.x, s = threadIdx.x, share = (n + 63) / 64;
    float sum = 0;
    for (int t = s * share; t < (s + 1) * share && t < n; ++t) sum += g[t * out + rows[k]] * x[t * width + columns[k]];
    part[s] = sum;
    for (int h = 1; h < 64; h *= 2) {
        __syncthreads();
        if (s % (2 * h) == 0) part[s] += part[s + h];
    }
    if (s == 0) dv[k] = part[0];
"""),
        "atomics in global memory": cuda("sddmm_cuda", SDDMM, """
    const int k = blockIdx.x;
    if (threadIdx.x == 0) dv[k] = 0;
    __syncthreads();
    float sum = 0;
    for (int t = threadIdx.x; t < n; t += 64) sum += g[t * out + rows[k]] * x[t * width + columns[k]];
    atomicAdd(&dv[k], sum);
"""),
    },
    "sddmm_coalesced_cuda": {
        "rows and columns read for each token": cuda("sddmm_coalesced_cuda", SDDMM, """
    __shared__ float part[4][32];
    const int k = blockIdx.x * 32 + threadIdx.x, w = threadIdx.y;
    float sum = 0;
    if (k < entries)
        for (int t = w; t < n; t += 4) sum += g[t * out + rows[k]] * x[t * width + columns[k]];
    part[w][threadIdx.x] = sum;
    __syncthreads();
    if (w == 0 && k < entries) {
        for (int q = 1; q < 4; ++q) sum += part[q][threadIdx.x];
        dv[k] = sum;
    }
"""),
        "atomics in global memory": cuda("sddmm_coalesced_cuda", SDDMM, """
    const int k = blockIdx.x * 32 + threadIdx.x;
    if (k < entries && threadIdx.y == 0) dv[k] = 0;
    __syncthreads();
    if (k >= entries) return;
    const int i = rows[k], j = columns[k];
    float sum = 0;
    for (int t = threadIdx.y; t < n; t += 4) sum += g[t * out + i] * x[t * width + j];
    atomicAdd(&dv[k], sum);
"""),
        "atomics in shared memory, a piece of tokens a warp": cuda("sddmm_coalesced_cuda", SDDMM, """
    __shared__ float total[32];
    const int lane = threadIdx.x, k = blockIdx.x * 32 + lane, share = (n + 3) / 4;
    if (threadIdx.y == 0) total[lane] = 0;
    __syncthreads();
    if (k < entries) {
        const float* gi = g + rows[k];
        const float* xj = x + columns[k];
        float sum = 0;
        for (int t = threadIdx.y * share; t < min(n, (int)(threadIdx.y + 1) * share); ++t) sum += gi[t * out] * xj[t * width];
        atomicAdd(&total[lane], sum);
    }
    __syncthreads();
    if (threadIdx.y == 0 && k < entries) dv[k] = total[lane];
"""),
        "rows of g and x in shared memory": cuda("sddmm_coalesced_cuda", SDDMM, """
    __shared__ float part[128], gs[4][64], xs[4][64];
    const int lane = threadIdx.x, w = threadIdx.y, k = blockIdx.x * 32 + lane;
    const int i = k < entries ? rows[k] : 0, j = k < entries ? columns[k] : 0;
    float sum = 0;
    for (int t = w; t < n; t += 4) {
        for (int q = lane; q < out; q += 32) gs[w][q] = g[t * out + q];
        for (int q = lane; q < width; q += 32) xs[w][q] = x[t * width + q];
        __syncwarp();
        sum += gs[w][i] * xs[w][j];
        __syncwarp();
    }
    part[w * 32 + lane] = sum;
    for (int h = 64; h >= 32; h /= 2) {
        __syncthreads();
        if (w * 32 + lane < h) part[w * 32 + lane] += part[w * 32 + lane + h];
    }
    if (w == 0 && k < entries) dv[k] = part[lane];
"""),
    },
    "spmm_coalesced_cuda": {
        "the tile turned": cuda("spmm_coalesced_cuda", SPMM, """
    __shared__ float tile[128][33];
    const int first = blockIdx.x * 32, lane = threadIdx.x, w = threadIdx.y;
    for (int t = w; t < 32 && first + t < n; t += 4)
        for (int j = lane; j < width; j += 32) tile[j][t] = x[(first + t) * width + j];
    __syncthreads();
    if (first + lane < n)
        for (int i = w; i < out; i += 4) {
            float sum = 0;
            for (int p = starts[i]; p < starts[i + 1]; ++p) sum += values[p] * tile[columns[p]][lane];
            y[(first + lane) * out + i] = sum;
        }
"""),
        "entries in shared memory too": cuda("spmm_coalesced_cuda", SPMM, """
    __shared__ float tile[32 * 128], value[4][32];
    __shared__ int column[4][32];
    const int first = blockIdx.x * 32, lane = threadIdx.x, w = threadIdx.y, tokens = min(32, n - first);
    for (int q = w * 32 + lane; q < tokens * width; q += 128) tile[q] = x[first * width + q];
    __syncthreads();
    for (int i = w; i < out; i += 4) {
        float sum = 0;
        for (int p = starts[i]; p < starts[i + 1]; p += 32) {
            const int count = min(32, starts[i + 1] - p);
            if (lane < count) { value[w][lane] = values[p + lane]; column[w][lane] = columns[p + lane]; }
            __syncwarp();
            if (lane < tokens)
                for (int q = 0; q < count; ++q) sum += value[w][q] * tile[lane * width + column[w][q]];
            __syncwarp();
        }
        if (lane < tokens) y[(first + lane) * out + i] = sum;
    }
"""),
        "entries by shuffles": cuda("spmm_coalesced_cuda", SPMM, """
    __shared__ float tile[32][129];
    const int first = blockIdx.x * 32, lane = threadIdx.x, s = threadIdx.y * 32 + lane, tokens = min(32, n - first);
    for (int q = s; q < tokens * width; q += 128) tile[q / width][q % width] = x[first * width + q];
    __syncthreads();
    const int mine = min(lane, tokens - 1);
    for (int i = threadIdx.y; i < out; i += 4) {
        float sum = 0;
        for (int p = starts[i]; p < starts[i + 1]; p += 32) {
            const int count = min(32, starts[i + 1] - p);
            const float v = lane < count ? values[p + lane] : 0;
            const int c = lane < count ? columns[p + lane] : 0;
            for (int q = 0; q < count; ++q)
                sum += __shfl_sync(0xffffffff, v, q) * tile[mine][__shfl_sync(0xffffffff, c, q)];
        }
        if (lane < tokens) y[(first + lane) * out + i] = sum;
    }
"""),
        "y leaves through shared memory": cuda("spmm_coalesced_cuda", SPMM, """
    __shared__ float tile[32][129], sums[32][33];
    const int first = blockIdx.x * 32, lane = threadIdx.x, w = threadIdx.y, tokens = min(32, n - first);
    for (int q = w * 32 + lane; q < tokens * width; q += 128) tile[q / width][q % width] = x[first * width + q];
    for (int from = 0; from < out; from += 32) {
        __syncthreads();
        for (int i = from + w; i < min(out, from + 32) && lane < tokens; i += 4) {
            float sum = 0;
            for (int p = starts[i]; p < starts[i + 1]; ++p) sum += values[p] * tile[lane][columns[p]];
            sums[lane][i - from] = sum;
        }
        __syncthreads();
        for (int t = w; t < tokens; t += 4)
            if (from + lane < out) y[(first + t) * out + from + lane] = sums[t][lane];
    }
"""),
    },
}

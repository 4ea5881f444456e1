"""The shipped checks reject every kernel listed here, and every launch. Each holds one mistake that people make."""

import sys
from contextvars import copy_context
from functools import partial

import pytest
from ladder_checks import PROBLEMS, RAGGED, WITHOUT_LADDER, check, check_all, compile_all
from mutation import mutated, rejected

from minisl.kernels.cuda import ladder, rows, sparse
from minisl.kernels.cuda.emulator import KernelFault
from minisl.kernels.cuda.launch import instead

pytestmark = pytest.mark.usefixtures("compiler")

# operation, rung, what is there, what is put in its place, how often it is there if not once
MUTANTS = [
    ("scatter_add", 0, "+= values[k];", "= values[k];"),
    ("scatter_add", 1, "atomicAdd(&W[index[k]], values[k])", "W[index[k]] += values[k]"),
    ("scatter_add", 1, "k < nnz", "k <= nnz"),
    ("scatter_add", 2, "k + 4 <= nnz", "k + 3 <= nnz"),
    ("scatter_add", 2, "last < nnz", "last < nnz - 1"),
    ("scatter_add", 2, "&W[i.w], v.w", "&W[i.w], v.z"),
    ("spmm", 0, "p < starts[i + 1]", "p <= starts[i + 1]"),
    ("spmm", 0, "+= sum;", "= sum;"),
    ("spmm", 1, "p += 32", "p += 31"),
    ("spmm", 1, "distance = 16", "distance = 8"),
    ("spmm", 1, "0xffffffff", "0x0000ffff"),
    ("spmm", 2, "min(TOKENS, starts[i + 1] - first)", "TOKENS"),
    ("spmm", 2, "min(t, n - 1)", "t"),
    ("spmm", 3, "columns[p] - first", "columns[p]"),
    ("spmm", 3, "start += ROWS", "start += 0"),
    ("spmm", 4, "+= tile[i][t]", "+= tile[t][i]"),
    ("spmm", 5, "tile[COLUMNS][TOKENS + 4]", "tile[COLUMNS][TOKENS + 1]"),
    ("spmm", 6, "sum[k].z += v * x4.z", "sum[k].z += v * x4.y"),
    ("spmm", 6, "[4 * lane] = sum[k]", "[lane] = sum[k]"),
    ("sddmm", 0, "dvalues[order[k]]", "dvalues[k]"),
    ("sddmm", 1, "t += 32", "t += 33"),
    ("sddmm", 1, "if (lane == 0) dvalues", "dvalues"),
    ("sddmm", 2, "blockIdx.z * nnz + order[k]", "order[k]"),
    ("sddmm", 2, "token + t < to && row + c < out", "row + c < out"),
    ("sddmm", 3, "g.w * v.w", "g.w * v.z"),
    ("sddmm", 4, "e / 256 * 4", "e / 128 * 4"),
    ("sddmm", 4, "end - 1);", "end);"),
    ("sl_forward", 0, "scale * w", "w"),
    ("sl_forward", 0, "W[tx][c];", "W[c][tx];"),
    ("sl_forward", 1, "rank + ty < r && ", ""),
    ("sl_forward", 2, "start += SIZE", "start += 0"),
    ("sl_forward", 3, "values[p])", "scale * values[p])"),
    ("sl_forward", 3, "atomicAdd(&W[rows[p] - row][columns[p] - column], values[p])",
     "W[rows[p] - row][columns[p] - column] += values[p]"),
    ("sl_forward", 3, "i = row + tx + l * SIZE", "i = row + EACH * tx + l"),
    ("sl_forward", 3, "i < out) y", "i <= out) y"),
    ("sl_backward_dx", 0, "* W[i][tx]", "* W[tx][i]"),
    ("sl_backward_dx", 1, "row / SIZE * gridDim.x + blockIdx.x", "blockIdx.x * gridDim.x + row / SIZE"),
    ("sl_backward_dx", 1, "column + tx < width) dx", "column + tx <= width) dx"),
    ("sl_backward_dx", 1, "scale * w", "w"),
    ("sl_backward_dw", 0, "scale * b", "b"),
    ("sl_backward_dw", 0, "dvalues[order[p]]", "dvalues[p]"),
    ("sl_backward_dw", 1, "atomicAdd(&dA[q * width + column + ty], scale * a)", "dA[q * width + column + ty] += scale * a"),
    ("sl_backward_dw", 1, "blockIdx.x * LONG + l", "blockIdx.x + l"),
    ("sl_backward_dw", 1, "l < LONG && row + l * SIZE < out", "l < LONG"),
    ("cross_entropy", 0, "highest = fmaxf(highest, z[v]);", "highest = 0;"),
    ("cross_entropy", 0, "label < 0 ? 0 : *scale", "*scale"),
    ("cross_entropy", 0, "share = s / kept", "share = 1 / kept"),
    ("cross_entropy", 1, "sum = sum * expf(highest - top) +", "sum = sum +"),
    ("cross_entropy", 1, "distance = 16", "distance = 8"),
    ("cross_entropy", 1, "warp < THREADS / 32", "warp < THREADS / 64"),
    ("cross_entropy", 1, "(v == label ?", "(v == label + 1 ?"),
    ("rms_norm", 0, "sum / width + eps", "sum / width"),
    ("rms_norm", 0, "x[row + c] * r[t] * (sum / width)", "x[row + c] * (sum / width)"),
    ("rms_norm", 0, "from = blockIdx.y * share", "from = 0"),
    ("rms_norm", 1, "__shfl_xor_sync(0x", "__shfl_down_sync(0x"),
    ("rms_norm", 1, "* (x[(size_t)t * width + c] * r[t])", "* x[(size_t)t * width + c]"),
    ("swiglu", 0, "a[k] / (1 + expf(-a[k]))", "a[k] / (1 + expf(a[k]))"),
    ("swiglu", 1, "(1 + a * (1 - s))", "(1 + a * s)"),
    ("swiglu", 1, "last < count", "last + 1 < count", 2),
    ("swiglu", 1, "k + 4 <= count", "k + 3 <= count", 2),
    ("rope", 0, "x1 * c - x2 * s", "x1 * c + x2 * s"),
    ("rope", 0, "x2 = x[k + half]", "x2 = x[k + 1]"),
    ("rope", 1, "b * batch_stride + h * head_stride", "(b * heads + h) * head_stride"),
    ("attention", 0, "j <= i + keys - queries", "j < keys"),
    ("attention", 0, "h / (heads / kv_heads)", "h % kv_heads"),
    ("attention", 1, "score * root : LOWEST", "score : LOWEST"),
    ("attention", 1, "highest + logf(sum)", "logf(sum)"),
    ("attention", 2, "sum *= shrink;", ""),
    ("attention", 2, "lane + 32 * e < d) oi", "lane + 32 * e <= d) oi"),
    ("attention_dq", 0, "(dp - dot)", "dp"),
    ("attention_dq", 1, "(dp - dot) * root", "(dp - dot)"),
    ("attention_dq", 2, "min(32, keys - first)", "32"),
    ("attention_dkv", 0, "max(0, j + queries - keys)", "0"),
    ("attention_dkv", 1, "dkj[e] += dsl", "dkj[e] += pl"),
    ("attention_dkv", 2, "h < (g + 1) * group", "h < g * group + 1"),
    ("attention_dkv", 2, "lane < count && j <= first + lane + keys - queries", "lane < count"),
    ("adamw", 0, "sqrtf(v[k]) / root + eps", "sqrtf(v[k]) + eps"),
    ("adamw", 0, "- step * m[k]", "- m[k]"),
    ("adamw", 1, "c2 * g * g", "c2 * g"),
    ("adamw", 1, "p = decay * p", "p = p"),
    ("adamw", 1, "sqrtf(v) / root + eps", "(sqrtf(v) + eps) / root"),
    ("adamw", 1, "last < count", "last + 1 < count"),
    ("adam8bit", 0, "v[k] = nearest(unsigned_table", "v[k] = nearest(signed_table"),
    ("adam8bit", 0, "? low : high", "? high : low"),
    ("adam8bit", 0, " || (x < 0 && table[high] == 0)", ""),
    ("adam8bit", 2, " || (x < 0 && table[PLACE(high)] == 0)", ""),
    ("adam8bit", 0, "fmaxf(m_new, fabsf(", "fmaxf(m_new, ("),
    ("adam8bit", 0, "    m_top[block] = m_new;\n", ""),
    ("adam8bit", 1, " || (x < 0 && table[high] == 0)", ""),
    ("adam8bit", 1, "m_new > 0 ? mk / m_new : 0", "mk / m_new"),
    ("adam8bit", 1, "warp < BLOCK / 32", "warp < BLOCK / 64"),
    ("adam8bit", 1, "block_max(vk, v_tops)", "block_max(vk, m_tops)"),
    ("adam8bit", 1, "k < count) {\n        mk", "k <= count) {\n        mk"),
]
BARRIER = "__syncthreads();"
WITH_BARRIERS = [("spmm", 2), ("spmm", 6), ("sddmm", 4), ("sl_forward", 3), ("sl_backward_dx", 1), ("sl_backward_dw", 1),
                 ("cross_entropy", 1), ("attention", 2), ("attention_dq", 2), ("attention_dkv", 2), ("adam8bit", 1)]
NOT_NEEDED = [("sl_forward", 3, 4)]  # before the next tile of W is written, its factors' barriers are passed
BARRIERS = [at for op, rung in WITH_BARRIERS for k in range(ladder.source(op, rung).count(BARRIER))
            if (at := (op, rung, k)) not in NOT_NEEDED]


def changed(op, rung, old, new, times=1):
    text = ladder.source(op, rung)
    assert text.count(old) == times
    return text.replace(old, new)


def without_barrier(op, rung, k):
    parts = ladder.source(op, rung).split(BARRIER)
    return BARRIER.join(parts[:k + 1]) + BARRIER.join(parts[k + 1:])


@pytest.fixture(scope="module", autouse=True)
def compiled(request):
    """Those that the chosen tests try."""
    chosen = [item.callspec.params for item in request.session.items if item.module is request.module]
    one_change = [(*p["mutant"][:2], changed(*p["mutant"])) for p in chosen if "mutant" in p]
    compile_all(one_change + [(*p["barrier"][:2], without_barrier(*p["barrier"])) for p in chosen if "barrier" in p])


def verdict(op, rung, text):
    """What the checks of the rung raise with this text in its place; None if nothing."""
    ragged = PROBLEMS[op][RAGGED[op]]
    checks = [partial(check_all, PROBLEMS[op], **{op: rung}), *(partial(check, ragged, order=n, **{op: rung}) for n in (1, 2))]
    with instead(op, text):
        for attempt in checks:
            try:
                copy_context().run(attempt)
            except Exception as error:
                return error
    return None


def title(mutant):
    op, rung, old, new, *_ = mutant
    return f"{op}_{rung}.cu: {old} -> {new}".replace("\n", " ")


@pytest.mark.parametrize("mutant", MUTANTS, ids=title)
def test_one_change_of_a_kernel(mutant, killed):
    killed[title(mutant)] = verdict(*mutant[:2], changed(*mutant)) is not None
    assert killed[title(mutant)]


@pytest.mark.parametrize("barrier", BARRIERS, ids=lambda at: "{}_{}.cu: barrier {}".format(*at))
def test_each_barrier_is_missed(barrier, killed):
    """Not by a wrong number, which a GPU might give only sometimes: the emulator says which two accesses nothing keeps apart."""
    fault = verdict(*barrier[:2], without_barrier(*barrier))
    killed["{}_{}.cu: without barrier {}".format(*barrier)] = isinstance(fault, KernelFault)
    assert isinstance(fault, KernelFault)


# What is launched: grids, the order of S's entries, how arrays lie in memory. By the rungs that each ladder ends with.


LAUNCHES = [
    (sparse.is_dense, " and address % 16 == 0", ""),
    (sparse.is_dense, "a.flags.c_contiguous and", ""),
    (sparse.scatter_add, "W.copy()", "W"),
    (sparse.add_sparse, "2: 4 * 256", "2: 8 * 256"),
    (sparse.spmm, "xp.zeros", "xp.empty"),
    (sparse.add_spmm, "values[order]", "values"),
    (sparse.add_spmm, "(pieces(out, 64), pieces(n, 128))\n", "(pieces(out, 64), pieces(n, 256))\n"),
    (sparse.sddmm, "parts.sum(axis=0)", "parts[0]"),
    (sparse.dense, "scale * B", "B"),
    (sparse.materialised_backward, "scale * matmul(B.T, dW)", "matmul(B.T, dW)"),
    (sparse.materialised_backward, "[support.index]", "[support.index[::-1]]"),
    (sparse.factored_forward, "    add_spmm(y, x, values, support, False)\n", ""),
    (sparse.factored_backward, "    dB *= scale\n", ""),
    (sparse.fused_forward, "values[order]", "values"),
    (sparse.fused_backward, "values[order]", "values"),
    (sparse.fused_backward, "xp.zeros(B.shape, x.dtype)", "xp.empty(B.shape, x.dtype)"),
    (rows.by_row, "pieces(n, 8)", "pieces(n, 16)"),
    (rows.by_element, "else 4", "else 8"),
    (rows.linear_cross_entropy, "dweight +=", "dweight[:] ="),
    (rows.linear_cross_entropy, "loss = loss + part", "loss = part"),
    (rows.rms_norm_backward, "parts.sum(axis=0)", "parts[0]"),
    (rows.rope, "else B\n", "else 1\n"),
    (rows.attention_backward, "alike(q, dout, out)", "(q, dout, out)"),
    (rows.too_wide, "> 0", "> 9"),
    (rows.sizes, "1 / math.sqrt(d)", "1 / d"),
    (rows.over, "pieces(T, 8)", "pieces(T, 16)"),
    (rows.heads_like, "if x.flags.c_contiguous else", "if True else"),
    (rows.flat, "else x.swapaxes(1, 2)", "else x"),
    (rows.adamw, "if not all(map(is_dense, (p, m, v))):", "if False:"),
    (rows.adam8bit, "if not all(map(is_dense, (p, m, v, m_top, v_top))):", "if False:"),
    (rows.adam, "lr / (1 - b1**t)", "lr"),
    (rows.adam, "1 - lr * weight_decay", "1 - weight_decay"),
]
OPS = {sparse: ("scatter_add", "spmm", "sddmm", "sl_forward"),
       rows: ("cross_entropy", "rms_norm", "swiglu", "rope", "adamw", "adam8bit", "attention")}


def title_of_launch(mutant):
    function, old, new = mutant
    return f"{function.__module__.removeprefix('minisl.')}.{function.__name__}: {old} -> {new}".replace("\n", " ")


@pytest.mark.parametrize("launch", LAUNCHES, ids=title_of_launch)
def test_one_change_of_a_launch(launch, killed):
    module = sys.modules[launch[0].__module__]
    problems = [PROBLEMS[op] for op in OPS[module]] + [WITHOUT_LADDER] * (module is sparse)
    with mutated(*launch):
        killed[title_of_launch(launch)] = rejected([partial(check_all, p) for p in problems])
    assert killed[title_of_launch(launch)]

"""A vector register as a value in Numba: sixteen neighbouring elements that are loaded, multiplied and stored at once.

    x = load(a, i, j)        a[i, j:j+16]                    store(a, i, j, x)
    s = splat(v)             sixteen times v                  fma(x, y, z)   x y + z
    total(x)                 the sum of the sixteen           larger(x, y)   of each pair
    highest(x)               the largest of the sixteen       x + y, x - y, x * y
    transpose(a, i, j, b, k, l)      b[k:k+16, l:l+16] = a[i:i+16, j:j+16]^T, within registers
    transpose_add(...)               the same, added

Arrays are two-dimensional with contiguous rows, or one-dimensional with j = 0; nothing is checked. LLVM maps the sixteen to
what the CPU has: one AVX-512 register of float32, two of AVX, four of NEON.

Numba does not see that kernels kept on disk depend on this file: after a change here, delete kernels/cpu/__pycache__.
"""

import operator

from llvmlite import ir
from numba import types
from numba.core.datamodel import PrimitiveModel, register_default
from numba.extending import intrinsic, lower_builtin, type_callable

LANES = 16
I64, I32 = ir.IntType(64), ir.IntType(32)


class Lanes(types.Type):
    """The Numba type of sixteen float32 or float64."""

    def __init__(self, dtype):
        self.dtype = dtype
        super().__init__(f"Lanes({dtype})")

    @property
    def key(self):
        return self.dtype


@register_default(Lanes)
class LanesModel(PrimitiveModel):
    def __init__(self, manager, fe_type):
        element = ir.FloatType() if fe_type.dtype == types.float32 else ir.DoubleType()
        super().__init__(manager, fe_type, ir.VectorType(element, LANES))


def address(context, builder, array_type, array, i, j):
    """Where a[i, j] starts, as a pointer to a vector."""
    a = context.make_array(array_type)(context, builder, array)
    row = builder.mul(i, builder.extract_value(a.strides, 0))
    size = array_type.dtype.bitwidth // 8
    byte = builder.add(row, builder.mul(j, I64(size)))
    start = builder.gep(builder.bitcast(a.data, ir.IntType(8).as_pointer()), [byte])
    vector = context.get_value_type(Lanes(array_type.dtype))
    return builder.bitcast(start, vector.as_pointer()), size


@intrinsic
def load(typing, a, i, j):
    def code(context, builder, signature, args):
        pointer, size = address(context, builder, signature.args[0], *args)
        return builder.load(pointer, align=size)

    return Lanes(a.dtype)(a, types.int64, types.int64), code


@intrinsic
def store(typing, a, i, j, x):
    def code(context, builder, signature, args):
        pointer, size = address(context, builder, signature.args[0], *args[:3])
        builder.store(args[3], pointer, align=size)
        return context.get_dummy_value()

    return types.void(a, types.int64, types.int64, x), code


@intrinsic
def splat(typing, value):
    def code(context, builder, signature, args):
        vector = context.get_value_type(signature.return_type)
        undefined = ir.Constant(vector, ir.Undefined)
        first = builder.insert_element(undefined, args[0], I32(0))
        return builder.shuffle_vector(first, undefined, mask([0] * LANES))

    return Lanes(value)(value), code


@intrinsic
def fma(typing, x, y, z):
    def code(context, builder, signature, args):
        return builder.fadd(builder.fmul(args[0], args[1], ("contract",)), args[2], ("contract",))

    return x(x, x, x), code


@intrinsic
def larger(typing, x, y):
    return x(x, x), lambda context, builder, signature, args: select_larger(builder, *args)


def select_larger(builder, x, y):
    return builder.select(builder.fcmp_ordered(">", x, y), x, y)


def folded(combine):
    def typed(typing, x):
        def code(context, builder, signature, args):
            v, half = args[0], LANES // 2
            while half:  # the upper half onto the lower, 16 -> 8 -> 4 -> 2 -> 1
                upper = builder.shuffle_vector(v, v, mask(range(half, 2 * half)))
                lower = builder.shuffle_vector(v, v, mask(range(half)))
                v, half = combine(builder, lower, upper), half // 2
            return builder.extract_element(v, I32(0))

        return x.dtype(x), code

    return intrinsic(typed)


total, highest = folded(lambda builder, x, y: builder.fadd(x, y)), folded(select_larger)


def elementwise(op, emit):
    @type_callable(op)
    def typer(context):
        def typed(x, y):
            if isinstance(x, Lanes) and x == y:
                return x
        return typed

    @lower_builtin(op, Lanes, Lanes)
    def code(context, builder, signature, args):
        return getattr(builder, emit)(*args, flags=("contract",))


for _op, _emit in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul")):
    elementwise(_op, _emit)


def mask(lanes):
    lanes = list(lanes)
    return ir.Constant(ir.VectorType(I32, len(lanes)), lanes)


def transposed(builder, rows):
    """Sixteen vectors as the columns of what they were, in four rounds. Round h swaps, between rows i and i + h, the lanes that
    belong to the other: lane l of row i goes to row l."""
    h = LANES // 2
    while h:
        for i in range(LANES):
            if not i & h:
                a, b = rows[i], rows[i + h]
                low = [lane if not lane & h else lane - h + LANES for lane in range(LANES)]
                high = [lane + h if not lane & h else lane + LANES for lane in range(LANES)]
                rows[i], rows[i + h] = builder.shuffle_vector(a, b, mask(low)), builder.shuffle_vector(a, b, mask(high))
        h //= 2
    return rows


def transposition(add):
    def typed(typing, a, i, j, b, k, l):
        def code(context, builder, signature, args):
            a, i, j, b, k, l = args
            rows = []
            for n in range(LANES):
                pointer, size = address(context, builder, signature.args[0], a, builder.add(i, I64(n)), j)
                rows.append(builder.load(pointer, align=size))
            for n, row in enumerate(transposed(builder, rows)):
                pointer, size = address(context, builder, signature.args[3], b, builder.add(k, I64(n)), l)
                builder.store(builder.fadd(builder.load(pointer, align=size), row) if add else row, pointer, align=size)
            return context.get_dummy_value()

        return types.void(a, types.int64, types.int64, b, types.int64, types.int64), code

    return intrinsic(typed)


transpose, transpose_add = transposition(False), transposition(True)

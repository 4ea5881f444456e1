"""What students write for a1: MISTAKES that must be named, and OTHERS that are right, by task.

A mistake: (what it is, text of the solution, what stands there instead, words the message must have). With None for the text, the
third is the whole cell. An other: {name: the whole cell}.
"""

KAHN = """
def topological_order(root, parents):
    GRAPH, waiting, todo = {}, {}, [root]
    while todo:
        node = todo.pop()
        if node not in GRAPH:
            GRAPH[node] = parents(node)
            for parent in GRAPH[node]:
                waiting[parent] = waiting.get(parent, 0) + 1
                todo.append(parent)
    order, ready = [], [root]
    while ready:
        node = ready.pop()
        order.append(node)
        for parent in GRAPH[node]:
            waiting[parent] -= 1
            if waiting[parent] == 0:
                ready.append(parent)
    return order
"""

MISTAKES = {
    "topological_order": [
        ("parents first", "return finished[::-1]", "return finished", "not with the root 'y': reversed?"),
        ("nothing returned", "return finished[::-1]", "finished.reverse()", "is of type NoneType, should be a list"),
        ("marked when pushed", None, """
def topological_order(root, parents):
    finished, seen, stack = [], {root}, [(root, False)]
    while stack:
        node, parents_done = stack.pop()
        if parents_done:
            finished.append(node)
            continue
        stack.append((node, True))
        for parent in parents(node):
            if parent not in seen:
                seen.add(parent)
                stack.append((parent, False))
    return finished[::-1]
""", "comes before 'u', which was computed from it"),
        ("breadth first", None, """
def topological_order(root, parents):
    order = [root]
    for node in order:
        order += [parent for parent in dict.fromkeys(parents(node)) if parent not in order]
    return order
""", "'c' comes before 'u', which was computed from it: at its turn its gradient is not complete"),
        ("depth first, in the order of first visits", None, """
def topological_order(root, parents):
    order, stack = [], [root]
    while stack:
        node = stack.pop()
        if node not in order:
            order.append(node)
            stack += parents(node)
    return order
""", "comes before"),
        ("recursive", None, """
def topological_order(root, parents):
    finished, seen = [], set()

    def visit(node):
        if node not in seen:
            seen.add(node)
            for parent in parents(node):
                visit(parent)
            finished.append(node)

    visit(root)
    return finished[::-1]
""", "a chain of 5,000: RecursionError: no recursion here, use a list as the stack"),
        ("every path", None, """
def topological_order(root, parents):
    order = [root]
    for node in order:
        order += parents(node)
    return order
""", "'x' stands 2 times in the order, should stand there once"),
        ("every path, each node at its last place", None, """
def topological_order(root, parents):
    order = [root]
    for node in order:
        order += dict.fromkeys(parents(node))
    return list(dict.fromkeys(order[::-1]))[::-1]
""", "parents was asked 4,096 times about 0, at most 2 are allowed: visit each node once"),
        ("users counted, edges taken off", None, KAHN.replace("in GRAPH[node]", "in set(GRAPH[node])", 1), "comes before"),
        ("edges counted, users taken off", None, KAHN[::-1].replace("in GRAPH[node]"[::-1], "in set(GRAPH[node])"[::-1], 1)[::-1],
         "y = x * x: 'x', a leaf, is missing: 1 of 2 nodes are in the order"),
        ("leaves left out", "elif node not in seen:", "elif node not in seen and parents(node):", "is missing"),
        ("the root alone", None, """
def topological_order(root, parents):
    return [root]
""", "y = x * x: 'x', a leaf, is missing: 1 of 2 nodes are in the order"),
        ("root left out", "return finished[::-1]", "return finished[-2::-1]", "'x', a leaf, is missing: 0 of 1 nodes"),
    ],
    "unbroadcast": [
        ("the new axes are kept", "grad = grad.sum(axis=tuple(range(grad.ndim - len(shape))))",
         "shape = (1,) * (grad.ndim - len(shape)) + shape",
         "has shape (1, 3, 4), should have (3, 4): an axis of length 1 too many"),
        ("mean, not sum", "return grad.sum(axis=stretched", "return grad.mean(axis=stretched",
         "the mean over the copies, not their sum"),
        ("mean over the new axes", "grad = grad.sum(axis=", "grad = grad.mean(axis=", "the mean over the copies, not their sum"),
        ("stretched axes dropped", ", keepdims=True", "", "an axis of length 1 was dropped (keepdims?)"),
        ("stretched axes forgotten", "return grad.sum(axis=stretched, keepdims=True)", "return grad",
         "should have (2, 3, 1): look at axis 2"),
        ("axes at the end are summed", "range(grad.ndim - len(shape))", "range(len(shape), grad.ndim)",
         "should have (3, 4): look at axis"),
        ("all stretched, whatever shape", "if length == 1 and grad.shape[axis] != 1", "",
         "has shape (1, 1, 1), should have (2, 3, 4)"),
        ("the first of the copies", None, """
def unbroadcast(grad, shape):
    while grad.ndim > len(shape):
        grad = grad[0]
    return grad[tuple(slice(0, length) for length in shape)]
""", "only the first of the copies counts"),
        ("nothing returned", "return grad.sum(axis=stretched", "grad.sum(axis=stretched",
         "is None: does the function return it?"),
        ("in place", None, """
def unbroadcast(grad, shape):
    while grad.ndim > len(shape):
        for other in grad[1:]:
            grad[0] += other
        grad = grad[0]
    for axis, length in enumerate(shape):
        if length == 1:
            grad = grad.sum(axis, keepdims=True)
    return grad
""", "grad was changed by the call"),
        ("one new axis at most", "grad = grad.sum(axis=tuple(range(grad.ndim - len(shape))))",
         "grad = grad.sum(0) if grad.ndim > len(shape) else grad", "gradient of shape () from (2, 3, 4) has shape (3, 4)"),
        ("grad returned", None, """
def unbroadcast(grad, shape):
    return grad
""", "has shape (2, 3, 4), should have (3, 4): 1 axis more (a sum over it is missing?)"),
    ],
    "multiply_backward": [
        ("swapped", "unbroadcast(grad * b, a.shape), unbroadcast(grad * a, b.shape)",
         "unbroadcast(grad * a, b.shape), unbroadcast(grad * b, a.shape)", "gradient of a and gradient of b are exchanged"),
        ("the factor itself", "unbroadcast(grad * b, a.shape), unbroadcast(grad * a, b.shape)",
         "unbroadcast(grad * a, a.shape), unbroadcast(grad * b, b.shape)", "gradient of a and gradient of b are exchanged"),
        ("not un-broadcast", "unbroadcast(grad * b, a.shape), unbroadcast(grad * a, b.shape)", "grad * b, grad * a",
         ", 1): 1 axis more (a sum over it is missing?)"),
        ("b not un-broadcast", "unbroadcast(grad * a, b.shape)", "grad * a", "gradient of b"),
        ("grad forgotten", "unbroadcast(grad * b, a.shape), unbroadcast(grad * a, b.shape)",
         "unbroadcast(0 * grad + b, a.shape), unbroadcast(0 * grad + a, b.shape)", "grad is not used"),
        ("grad un-broadcast first", "unbroadcast(grad * b, a.shape), unbroadcast(grad * a, b.shape)",
         "unbroadcast(grad, a.shape) * unbroadcast(0 * grad + b, a.shape), unbroadcast(grad * a, b.shape)",
         "grad was summed too early"),
        ("the sum's backward", "unbroadcast(grad * b, a.shape), unbroadcast(grad * a, b.shape)",
         "unbroadcast(grad, a.shape), unbroadcast(grad, b.shape)", "the gradient of a + b"),
        ("only a's", "return unbroadcast(grad * b, a.shape), unbroadcast(grad * a, b.shape)",
         "return unbroadcast(grad * b, a.shape)",
         "is an array, should be a tuple of 2"),
        ("nothing returned", "return unbroadcast(grad * b, a.shape)", "unbroadcast(grad * b, a.shape)",
         "is None: does the function return it?"),
        ("wrong sign", "unbroadcast(grad * a, b.shape)", "-unbroadcast(grad * a, b.shape)", "has the wrong sign"),
        ("grad in place", "return unbroadcast(grad * b, a.shape), unbroadcast(grad * a, b.shape)",
         "db = unbroadcast(grad * a, b.shape); grad *= b; return unbroadcast(grad, a.shape), db", "grad was changed by the call"),
    ],
    "matmul_backward": [
        ("dw by text", "rows.T @ rows_of_grad", "np.swapaxes(x, -1, -2) @ grad", "1 axis more (a sum over it is missing?)"),
        ("dw by text, mean", "rows.T @ rows_of_grad",
         "(np.swapaxes(x, -1, -2) @ grad).reshape(-1, *w.shape).mean(0)", "mean over the first axis of the batch, not sum"),
        ("dw a mean", "rows.T @ rows_of_grad", "rows.T @ rows_of_grad / len(rows)", "mean over the batch, not sum"),
        ("dw of the first text", "rows.T @ rows_of_grad", "(x if x.ndim == 2 else x[0]).T @ (grad if x.ndim == 2 else grad[0])",
         "the other texts of the batch are missing"),
        ("dw transposed", "rows.T @ rows_of_grad", "rows_of_grad.T @ rows", "transposed?"),
        ("x reshaped, not transposed", "rows.T @ rows_of_grad", "x.reshape(x.shape[-1], -1) @ rows_of_grad",
         "a reshape of x is no transpose: it mixes tokens and columns"),
        ("w reshaped, not transposed", "grad @ w.T", "grad @ w.reshape(w.shape[::-1])", "a reshape of w is no transpose"),
        ("w not transposed", "grad @ w.T", "grad @ w", "mismatch in its core dimension"),
        ("swapped", "grad @ w.T, rows.T @ rows_of_grad", "rows.T @ rows_of_grad, grad @ w.T",
         "gradient of x and gradient of w are exchanged"),
        ("x.T of a batch", "rows.T @ rows_of_grad", "x.T @ grad", "mismatch"),
        ("matrices only", None, """
def matmul_backward(grad, x, w):
    return np.einsum("no,do->nd", grad, w), np.einsum("nd,no->do", x, grad)
""", "more dimensions than subscripts"),
        ("three axes at most", None, """
def matmul_backward(grad, x, w):
    dw = np.swapaxes(x, -1, -2) @ grad
    return grad @ w.T, dw if dw.ndim == 2 else dw.sum(0)
""", "1 axis more (a sum over it is missing?)"),
        ("summed too much", "rows.T @ rows_of_grad", "(rows.T @ rows_of_grad).sum(0)", "1 axis fewer"),
        ("only dw", "return grad @ w.T, ", "return ", "is an array, should be a tuple of 2"),
        ("nothing returned", "return grad @ w.T", "grad @ w.T", "is None: does the function return it?"),
        ("in place", "return grad @ w.T, rows.T @ rows_of_grad",
         "dw = rows.T @ rows_of_grad\n    return np.matmul(grad, w.T, out=x), dw", "x was changed by the call"),
    ],
    "sum_backward": [
        ("axes not put back", "if not keepdims:", "if False:", "grad is copied along axis 0, not along the axis that was summed"),
        ("axes put back in front", "grad = np.expand_dims(grad, axis)",
         "grad = grad.reshape((1,) * (len(shape) - grad.ndim) + grad.shape)", "grad is copied along axis 0, not along the axis"),
        ("axes put back at the end", "grad = np.expand_dims(grad, axis)",
         "grad = grad.reshape(grad.shape + (1,) * (len(shape) - grad.ndim))", "grad is copied along axis 1, not along the axis"),
        ("keepdims not looked at", "if not keepdims:", "if True:", "keepdims=True: ValueError"),
        ("mean", "np.broadcast_to(grad, shape).copy()", "np.broadcast_to(grad, shape) * (grad.size / np.prod(shape))",
         "this is the mean's gradient"),
        ("times the number", "np.broadcast_to(grad, shape).copy()", "np.broadcast_to(grad, shape) * (np.prod(shape) / grad.size)",
         "times what it should be"),
        ("ones", "np.broadcast_to(grad, shape).copy()", "np.ones(shape)", "grad is not used"),
        ("not copied to shape", "np.broadcast_to(grad, shape).copy()", "grad", "look at axis"),
        ("grad returned", None, """
def sum_backward(grad, shape, axis, keepdims):
    return grad
""", "1 axis fewer: summed over one too many, or not put back?"),
        ("None forgotten", "if axis is None:", "if False:", "axis=None, keepdims=False: TypeError"),
        ("nothing returned", "return np.broadcast_to", "np.broadcast_to", "is None: does the function return it?"),
        ("one axis only", "grad = np.expand_dims(grad, axis)",
         "grad = np.expand_dims(grad, axis if isinstance(axis, int) or len(axis) == len(shape) else axis[0])",
         "axis=(0, 2), keepdims=False: ValueError"),
        ("one axis after another, as given", "grad = np.expand_dims(grad, axis)", """
        for k in (axis,) if isinstance(axis, int) else axis:
            grad = np.expand_dims(grad, k)""", "keepdims=False: AxisError"),
        ("negative axes", "if axis is None:", """
    if axis is not None and not keepdims:
        for k in sorted((axis,) if isinstance(axis, int) else axis):
            grad = np.repeat(grad.reshape(*grad.shape[:k], 1, *grad.shape[k:]), shape[k], k)
        return grad
    if axis is None:""", "axis=-1, keepdims=False"),
    ],
    "gather_backward": [
        ("assigned", "np.add.at(dw, index, grad)", "dw[index] = grad",
         "where a token comes again, only its last place counts; they should add up"),
        ("+= with an index", "np.add.at(dw, index, grad)", "dw[index] += grad",
         "where a token comes again, only its last place counts; they should add up"),
        ("mean", "return dw", "return dw / np.maximum(np.bincount(np.ravel(index), minlength=rows), 1)[:, None]",
         "the mean over a token's places, not the sum"),
        ("as many rows as are used", "(rows, grad.shape[-1])", "(index.max() + 1, grad.shape[-1])", "look at axis 0"),
        ("grad's shape", None, """
def gather_backward(grad, index, rows):
    return grad
""", "look at axis 0"),
        ("the forward again", "np.add.at(dw, index, grad)", "dw = grad[index]", "IndexError"),
        ("one axis only", None, """
def gather_backward(grad, index, rows):
    dw = np.zeros((rows, grad.shape[-1]))
    for k in range(len(index)):
        dw[index[k]] += grad[k]
    return dw
""", "only index's first axis was looped over"),
        ("transposed", "return dw", "return dw.T", "transposed?"),
        ("columns", "np.zeros((rows, grad.shape[-1]))\n    np.add.at(dw, index, grad)",
         "np.zeros((grad.shape[-1], rows))\n    np.add.at(dw.T, index, grad)", "transposed?"),
        ("ones for unused rows", "np.zeros", "np.ones", "something is added"),
        ("summed over the columns", "return dw", "return dw.sum(1)", "1 axis fewer"),
        ("counts", "np.add.at(dw, index, grad)", "np.add.at(dw, index, 1)", "grad is not used"),
        ("off by one", "np.add.at(dw, index, grad)", "np.add.at(dw, index - 1, grad)", "in the wrong places"),
        ("in place", "np.add.at(dw, index, grad)", "np.add.at(dw, index, grad); grad *= 0", "grad was changed by the call"),
        ("nothing returned", "return dw", "", "is None: does the function return it?"),
    ],
    "log_softmax_backward": [
        ("no keepdims", ", keepdims=True", "", "could not be broadcast"),
        ("y for p", "np.exp(y)", "y", "y stands where exp y should"),
        ("softmax's backward", "grad - np.exp(y) * grad.sum(axis, keepdims=True)",
         "np.exp(y) * (grad - (grad * np.exp(y)).sum(axis, keepdims=True))", "the gradient of softmax, not of log-softmax"),
        ("last axis", "grad.sum(axis,", "grad.sum(-1,", "axis=0: gradient of x is wrong: the sum runs over the other axis"),
        ("first axis", "grad.sum(axis,", "grad.sum(0,", "axis=1: gradient of x is wrong: the sum runs over the other axis"),
        ("sum of grad p", "grad.sum(axis, keepdims=True)", "(grad * np.exp(y)).sum(axis, keepdims=True)",
         "the sum of grad * exp y was taken, should be the sum of grad"),
        ("all axes", "grad.sum(axis,", "grad.sum(None,", "the sum runs over every axis"),
        ("mean", "grad.sum", "grad.mean", "the mean along the axis, not the sum"),
        ("no sum", "np.exp(y) * grad.sum(axis, keepdims=True)", "np.exp(y) * grad", "grad is not summed"),
        ("second term forgotten", "grad - np.exp(y) * grad.sum(axis, keepdims=True)", "grad",
         "the part that comes from the sum is missing"),
        ("first term forgotten", "grad - np.exp", "-np.exp", "the part that comes from x_k in front is missing"),
        ("sum of one", "grad.sum(axis, keepdims=True)", "1", "the sum of grad is missing"),
        ("sign", "grad - np.exp(y)", "grad + np.exp(y)", "the part that comes from the sum has the wrong sign"),
        ("whole sign", "return grad - np.exp(y) * grad.sum(axis, keepdims=True)",
         "return np.exp(y) * grad.sum(axis, keepdims=True) - grad",
         "has the wrong sign"),
        ("in place", "return grad - np.exp(y) * grad.sum(axis, keepdims=True)",
         "grad -= np.exp(y) * grad.sum(axis, keepdims=True)\n    return grad", "grad was changed by the call"),
        ("exp in place", "np.exp(y)", "np.exp(y, out=y)", "y was changed by the call"),
        ("nothing returned", "return grad", "grad", "is None: does the function return it?"),
    ],
    "gradient_check": [
        ("mean of the errors", "/ scale).max())", "/ scale).mean())",
         "a wrong gradient is accepted (the first entry times 1 + 2e-5)"),
        ("no absolute value", "float((abs(derived - measured) / scale).max())", "float(((derived - measured) / scale).max())",
         "is an absolute value missing?"),
        ("absolute error", "/ scale).max())", ").max())", "a wrong gradient is accepted"),
        ("absolute tolerance", None, """
def gradient_check(f, gradient, x):
    derived, measured = gradient(x), np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        e = np.zeros(x.shape)
        e[i] = 1e-6
        measured[i] = (f(x + e) - f(x - e)) / 2e-6
    return np.allclose(derived, measured, atol=1e-2)
""", "should be the largest relative error, a number"),
        ("fixed step of 1e-5", "h = np.finfo(np.float64).eps ** (1 / 3) * abs(x).max()", "h = 1e-5", "(is the step too "),
        ("fixed step of 1e-6", "h = np.finfo(np.float64).eps ** (1 / 3) * abs(x).max()", "h = 1e-6", "(is the step too "),
        ("step by entry", "        step[i] = h\n        measured[i] = (f(x + step) - f(x - step)) / (2 * h)", """
        step[i] = h = np.finfo(np.float64).eps ** (1 / 3) * abs(x[i])
        with np.errstate(invalid="ignore"):
            measured[i] = (f(x + step) - f(x - step)) / (2 * h)""",
         "(is h 0 where x is? It follows the largest entry): the right gradient is rejected"),
        ("one side", "(f(x + step) - f(x - step)) / (2 * h)", "(f(x + step) - f(x)) / h",
         "(one-sided? f(x + h e_i) - f(x - h e_i) is the numerator)"),
        ("2 forgotten", "/ (2 * h)", "/ h", "(is the 2 of 2h missing?)"),
        ("no floor", "np.maximum(np.maximum(abs(derived), abs(measured)), 1e-3 * abs(measured).max())",
         "np.maximum(abs(derived), abs(measured))", "(is 1e-3 max |m_j| missing?): the right gradient is rejected"),
        ("all entries at once", "step[i] = h", "step[...] = h", "the right gradient is rejected"),
        ("x is changed", "x = np.array(x, np.float64)", "x = np.asarray(x, np.float64)\n    x += 0.1\n    x -= 0.1",
         "x was changed by the call"),
        ("x not put back", None, """
def gradient_check(f, gradient, x):
    h, derived, measured = 6e-6 * abs(x).max(), gradient(x), np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        x[i] += h
        above = f(x)
        x[i] -= 2 * h
        measured[i] = (above - f(x)) / (2 * h)
        x[i] += h
    return float((abs(derived - measured) / np.maximum(abs(derived), abs(measured))).max())
""", "x was changed by the call"),
        ("steps in float32", None, """
def gradient_check(f, gradient, x):
    h, derived, measured = 6e-6 * abs(x).max(), gradient(x), np.zeros(x.shape)
    if derived.shape != x.shape:
        raise ValueError
    for i in np.ndindex(x.shape):
        above, below = x.copy(), x.copy()
        above[i] += h
        below[i] -= h
        measured[i] = (f(above) - f(below)) / (2 * h)
    if not measured.any():
        raise ValueError
    return float((abs(derived - measured) / np.maximum(abs(derived), abs(measured))).max())
""", "(measured in float32?)"),
        ("NaN not seen", "float((abs(derived - measured) / scale).max())",
         "max(0, *(abs(derived - measured) / scale).flatten().tolist())",
         "entry is NaN"),
        ("nanmax", "float((abs(derived - measured) / scale).max())", "float(np.nanmax(abs(derived - measured) / scale))",
         "entry is NaN"),
        ("shape not looked at", "derived.shape != x.shape", "False", "accepts a gradient of shape (1,), for x of shape (3, 3)"),
        ("size looked at, not shape", "derived.shape != x.shape", "derived.size != x.size",
         "gradient_check accepts a gradient of shape ("),
        ("constant accepted", 'raise ValueError("the function does not change with x: this check cannot fail")', "return 0.0",
         "accepts a function that does not change with x"),
        ("norms", "float((abs(derived - measured) / scale).max())",
         "float(abs(np.linalg.norm(derived) - np.linalg.norm(measured)) / np.linalg.norm(measured))",
         "is accepted (the wrong sign)"),
        ("sums", "float((abs(derived - measured) / scale).max())",
         "float(abs(derived.sum() - measured.sum()) / abs(measured.sum()))", "f(x) = sum c sin x: a wrong gradient is accepted"),
        ("relative to the measured", "np.maximum(np.maximum(abs(derived), abs(measured)), 1e-3 * abs(measured).max())",
         "abs(measured)",
         "error of 1.25 times the right gradient is wrong (0.25, should be 0.2)"),
        ("sum of the errors", "/ scale).max())", "/ scale).sum())",
         "error of 0 times the right gradient is wrong (9, should be 1)"),
        ("vector of errors", "float((abs(derived - measured) / scale).max())", "abs(derived - measured) / scale",
         "should be one number"),
        ("verdict", "float((abs(derived - measured) / scale).max())", "bool((abs(derived - measured) < 1e-6 * scale).all())",
         "should be the largest relative error, a number"),
        ("nothing returned", "return float(", "float(", "is None: does the function return it?"),
    ],
}

OTHERS = {
    "topological_order": {
        "Kahn": """
def topological_order(root, parents):
    waiting, seen, stack = {}, {root}, [root]
    while stack:
        for parent in parents(stack.pop()):
            waiting[parent] = waiting.get(parent, 0) + 1
            if parent not in seen:
                seen.add(parent)
                stack.append(parent)
    order, ready = [], [root]
    while ready:
        order.append(ready.pop())
        for parent in parents(order[-1]):
            waiting[parent] -= 1
            if waiting[parent] == 0:
                ready.append(parent)
    return order
""",
        "depth first, a stack of iterators": """
def topological_order(root, parents):
    finished, seen, stack = [], {root}, [(root, iter(parents(root)))]
    while stack:
        node, rest = stack[-1]
        for parent in rest:
            if parent not in seen:
                seen.add(parent)
                stack.append((parent, iter(parents(parent))))
                break
        else:
            finished.append(stack.pop()[0])
    finished.reverse()
    return finished
""",
        "graphlib": """
from graphlib import TopologicalSorter

def topological_order(root, parents):
    graph, todo = {}, [root]
    while todo:
        node = todo.pop()
        if node not in graph:
            graph[node] = parents(node)
            todo.extend(graph[node])
    return list(TopologicalSorter(graph).static_order())[::-1]
""",
        "sorted by the longest way from the root": """
from collections import deque

def topological_order(root, parents):
    graph, todo = {}, [root]
    while todo:
        node = todo.pop()
        if node not in graph:
            graph[node] = tuple(parents(node))
            todo += graph[node]
    users = {node: set() for node in graph}
    for node in graph:
        for parent in graph[node]:
            users[parent].add(node)
    depth, ready, left = {root: 0}, deque([root]), {node: len(users[node]) for node in graph}
    while ready:
        node = ready.popleft()
        for parent in set(graph[node]):
            depth[parent] = max(depth.get(parent, 0), depth[node] + 1)
            left[parent] -= 1
            if not left[parent]:
                ready.append(parent)
    return sorted(graph, key=depth.get)
""",
    },
    "unbroadcast": {
        "a loop": """
def unbroadcast(grad, shape):
    while grad.ndim > len(shape):
        grad = grad.sum(0)
    for axis in range(len(shape)):
        if shape[axis] == 1:
            grad = grad.sum(axis, keepdims=True)
    return grad
""",
        "every copy, by its index": """
def unbroadcast(grad, shape):
    where = np.broadcast_to(np.arange(int(np.prod(shape, dtype=int))).reshape(shape), grad.shape)
    return np.bincount(np.ravel(where), weights=np.ravel(grad), minlength=int(np.prod(shape, dtype=int))).reshape(shape)
""",
        "one sum, then reshape": """
def unbroadcast(grad, shape):
    padded = (1,) * (grad.ndim - len(shape)) + tuple(shape)
    axes = tuple(k for k in range(grad.ndim) if padded[k] == 1)
    return np.sum(grad, axis=axes).reshape(shape)
""",
        "add.at": """
def unbroadcast(grad, shape):
    result = np.zeros(shape)
    for place in np.ndindex(grad.shape):
        mine = place[grad.ndim - len(shape):]
        np.add.at(result, tuple(0 if n == 1 else k for k, n in zip(mine, shape)), grad[place])
    return result
""",
    },
    "multiply_backward": {
        "without unbroadcast": """
def multiply_backward(grad, a, b):
    results = []
    for mine, other in ((a, b), (b, a)):
        g = grad * other
        g = g.sum(axis=tuple(range(g.ndim - mine.ndim)))
        results.append(g.sum(axis=tuple(k for k in range(mine.ndim) if mine.shape[k] == 1), keepdims=True))
    return results
""",
        "loop over entries": """
def multiply_backward(grad, a, b):
    da, db = np.zeros(a.shape), np.zeros(b.shape)
    def place(index, shape):
        return tuple(0 if n == 1 else k for k, n in zip(index[len(index) - len(shape):], shape))
    for index in np.ndindex(grad.shape):
        i, j = place(index, a.shape), place(index, b.shape)
        da[i] += grad[index] * b[j]
        db[j] += grad[index] * a[i]
    return da, db
""",
        "add.at on a view of indices": """
def multiply_backward(grad, a, b):
    def add_up(g, x):
        where = np.broadcast_to(np.arange(x.size).reshape(x.shape), grad.shape)
        out = np.zeros(x.size)
        np.add.at(out, where.reshape(-1), np.broadcast_to(g, grad.shape).reshape(-1))
        return out.reshape(x.shape)
    return add_up(grad * b, a), add_up(grad * a, b)
""",
    },
    "matmul_backward": {
        "einsum": """
def matmul_backward(grad, x, w):
    batch = "abc"[:x.ndim - 1]
    return np.einsum("...o,do->...d", grad, w), np.einsum(f"{batch}d,{batch}o->do", x, grad)
""",
        "tensordot": """
def matmul_backward(grad, x, w):
    before = tuple(range(x.ndim - 1))
    return np.tensordot(grad, w, axes=(-1, 1)), np.tensordot(x, grad, axes=(before, before))
""",
        "sum over texts": """
def matmul_backward(grad, x, w):
    dw = np.swapaxes(x, -1, -2) @ grad
    return grad @ np.transpose(w), dw.sum(axis=tuple(range(dw.ndim - 2)))
""",
        "loop over tokens": """
def matmul_backward(grad, x, w):
    dx, dw = np.zeros(x.shape), np.zeros(w.shape)
    for place in np.ndindex(x.shape[:-1]):
        dx[place] = w @ grad[place]
        dw += np.outer(x[place], grad[place])
    return dx, dw
""",
    },
    "sum_backward": {
        "reshape": """
def sum_backward(grad, shape, axis, keepdims):
    ndim = len(shape)
    axes = range(ndim) if axis is None else [axis] if isinstance(axis, int) else axis
    axes = {k % ndim for k in axes}
    kept = tuple(1 if k in axes else n for k, n in enumerate(shape))
    return np.reshape(grad, kept) * np.ones(shape)
""",
        "shape of a trial sum": """
def sum_backward(grad, shape, axis, keepdims):
    out = np.zeros(shape)
    out += np.asarray(grad).reshape(out.sum(axis=axis, keepdims=True).shape)
    return out
""",
        "loop over entries": """
def sum_backward(grad, shape, axis, keepdims):
    n = len(shape)
    axes = tuple(range(n)) if axis is None else np.atleast_1d(axis) % n
    out = np.empty(shape)
    for place in np.ndindex(shape):
        out[place] = grad[tuple(0 if k in axes else place[k] for k in range(n) if keepdims or k not in axes)]
    return out
""",
        "repeat": """
def sum_backward(grad, shape, axis, keepdims):
    axes = range(len(shape)) if axis is None else (axis,) if isinstance(axis, int) else axis
    for k in sorted(k % len(shape) for k in axes):
        grad = np.repeat(grad if keepdims else np.expand_dims(grad, k), shape[k], axis=k)
    return grad
""",
    },
    "gather_backward": {
        "loop": """
def gather_backward(grad, index, rows):
    dw = np.zeros((rows, grad.shape[-1]))
    for token, g in zip(index.reshape(-1), grad.reshape(-1, grad.shape[-1])):
        dw[token] += g
    return dw
""",
        "one-hot": """
def gather_backward(grad, index, rows):
    return np.eye(rows)[index.reshape(-1)].T @ grad.reshape(-1, grad.shape[-1])
""",
        "bincount": """
def gather_backward(grad, index, rows):
    columns = np.moveaxis(grad, -1, 0).reshape(grad.shape[-1], -1)
    return np.stack([np.bincount(index.ravel(), weights=g, minlength=rows) for g in columns], axis=1)
""",
        "SciPy": """
from scipy.sparse import csr_array

def gather_backward(grad, index, rows):
    n = index.size
    return csr_array((np.ones(n), (index.reshape(-1), np.arange(n))), shape=(rows, n)) @ grad.reshape(n, -1)
""",
        "rows": """
def gather_backward(grad, index, rows):
    return np.array([grad[index == row].sum(axis=0) for row in range(rows)])
""",
    },
    "log_softmax_backward": {
        "softmax of y": """
from scipy.special import softmax

def log_softmax_backward(grad, y, axis):
    return grad - softmax(y, axis=axis) * np.sum(grad, axis=axis, keepdims=True)
""",
        "the Jacobian": """
def log_softmax_backward(grad, y, axis):
    g, y = np.moveaxis(grad, axis, -1), np.moveaxis(y, axis, -1)
    jacobian = np.eye(y.shape[-1]) - np.exp(y)[..., None, :]
    return np.moveaxis(np.einsum("...i,...ik->...k", g, jacobian), -1, axis)
""",
        "a loop over the other axes": """
def log_softmax_backward(grad, y, axis):
    out = np.empty(y.shape)
    g, y, o = (np.moveaxis(z, axis, -1) for z in (grad, y, out))
    for place in np.ndindex(y.shape[:-1]):
        total = sum(g[place])
        for k in range(y.shape[-1]):
            o[(*place, k)] = g[(*place, k)] - math.exp(y[(*place, k)]) * total
    return out
""",
        "expand_dims": """
def log_softmax_backward(grad, y, axis):
    total = np.expand_dims(np.add.reduce(grad, axis=axis), axis)
    p = np.e ** y
    return -(p * total) + grad
""",
    },
    "gradient_check": {
        "moved in a copy and put back": """
def gradient_check(f, gradient, x):
    x = np.array(x, dtype=float)
    d = np.asarray(gradient(x), dtype=float)
    if d.shape != x.shape:
        raise ValueError("shape")
    h = np.finfo(float).eps ** (1 / 3) * np.max(np.abs(x))
    m = np.empty_like(x)
    for i in np.ndindex(*x.shape):
        old = x[i]
        x[i] = old + h
        up = f(x)
        x[i] = old - h
        down = f(x)
        x[i] = old
        m[i] = (up - down) / (2 * h)
    if np.all(m == 0):
        raise ValueError("constant")
    floor = 1e-3 * np.abs(m).max()
    worst = 0.0
    for i in np.ndindex(*x.shape):
        error = abs(d[i] - m[i]) / max(abs(d[i]), abs(m[i]), floor)
        if error != error:
            return float("inf")
        worst = max(worst, error)
    return worst
""",
        "identity matrix": """
def gradient_check(f, gradient, x):
    x64 = x.astype(np.float64)
    derived = gradient(x64)
    if np.shape(derived) != x.shape:
        raise ValueError(np.shape(derived))
    h = np.cbrt(np.finfo(np.float64).eps) * np.max(np.abs(x64))
    steps = h * np.eye(x.size).reshape(x.size, *x.shape)
    measured = np.array([f(x64 + s) - f(x64 - s) for s in steps]).reshape(x.shape) / 2 / h
    biggest = np.abs(measured).max()
    if biggest == 0:
        raise ValueError("cannot fail")
    return np.max(np.abs(derived - measured) / np.maximum.reduce([abs(derived), abs(measured), 0 * x64 + biggest / 1000]))
""",
        "another step, four points": """
def gradient_check(f, gradient, x):
    x = np.asarray(x, np.float64)
    derived = np.array(gradient(x.copy()))
    if derived.shape != x.shape:
        raise ValueError("shape")
    h, measured = 1e-4 * np.sqrt((x * x).mean()), []
    for k in range(x.size):
        def along(t):
            flat = x.flatten()
            flat[k] += t * h
            return f(flat.reshape(x.shape))
        measured.append((8 * (along(1) - along(-1)) - (along(2) - along(-2))) / (12 * h))
    measured = np.reshape(measured, x.shape)
    if (measured == 0).all():
        raise ValueError("flat")
    return (abs(derived - measured) / np.maximum(np.maximum(abs(derived), abs(measured)), 1e-3 * abs(measured).max())).max()
""",
    },
}

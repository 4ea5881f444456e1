"""What students write for a3: MISTAKES that must be named, and OTHERS that are right, by task (see a1_engine)."""

DRAW = "rng.choice(out * width, int(delta * out * width), replace=False)"
DRAW_LINE = f"return np.sort({DRAW})"
ADD = "W.flat[I] += v"
RETURN = "return G @ W, s * dW @ A.T, s * B.T @ dW, dW.flat[I]"
FULL = "(S @ rows.T).T"
PAIRS = "(g[:, rows] * x[:, cols]).sum(0)"
STEP = "p - lr * (m / (1 - b1**t)) / (np.sqrt(u / (1 - b2**t)) + eps)"
UPDATE = "p[k], m[k], u[k] = adam(p[k], g, m[k], u[k], t, 0.01)"

MISTAKES = {
    "draw_support": [
        ("nothing returned", DRAW_LINE, f"np.sort({DRAW})", "draw_support returns None"),
        ("with replacement", "replace=False", "replace=True", "more than once: drawn with replacement?"),
        ("rounded", "int(delta * out * width), r", "round(delta * out * width), r", "rounded, should be cut"),
        ("a coin for each place", DRAW_LINE, "return np.flatnonzero(rng.random(out * width) < delta)", "the number of places"),
        ("not sorted", DRAW_LINE, f"return {DRAW}", "not sorted"),
        ("the seed is not used", "default_rng(seed)", "default_rng()", "a second call with the same seed gives another support"),
        ("always the same seed", "default_rng(seed)", "default_rng(0)", "two seeds give the same support"),
        ("the first places", DRAW_LINE, "return np.arange(int(delta * out * width))", "two seeds give the same support"),
        ("counted from 1", DRAW_LINE, f"return 1 + np.sort({DRAW})", "places run from"),
        ("the last one is left out", "rng.choice(out * width,", "rng.choice(out * width - 1,", "1 of "),
        ("a square matrix", "rng.choice(out * width,", "rng.choice(out * out,", "places are never drawn"),
        ("rows and columns, as a pair", DRAW_LINE, f"return np.divmod(np.sort({DRAW}), width)", "one flat place"),
        ("a mask", DRAW_LINE, f"""mask = np.zeros((out, width), bool)
    mask.flat[{DRAW}] = True
    return mask""", "one flat place i * width + j"),
        ("floats", DRAW_LINE, f"return np.sort({DRAW}).astype(float)", "places are integers"),
        ("one block", DRAW_LINE, """nnz = int(delta * out * width)
    return np.sort((np.arange(nnz) + rng.integers(out * width)) % (out * width))""", "are places of one drawn together?"),
        ("as many in each row", DRAW_LINE, """nnz = int(delta * out * width)
    each = np.full(out, nnz // out)
    each[rng.permutation(out)[:nnz % out]] += 1
    return np.concatenate([np.sort(rng.choice(width, n, replace=False)) + i * width for i, n in enumerate(each)])""",
         "in a row varies by"),
        ("a grid, shifted", DRAW_LINE, """nnz = int(delta * out * width)
    return np.sort((np.linspace(0, out * width, nnz, endpoint=False).astype(int) + rng.integers(out * width)) % (out * width))""",
         "or is it a grid?"),
        ("repeats dropped", DRAW_LINE, "return np.unique(rng.integers(0, out * width, int(delta * out * width)))",
         "the number of places"),
    ],
    "init": [
        ("nothing returned", "return np.zeros((out, r)), A, v, alpha / r", "pass", "init returns None"),
        ("s is forgotten", "A, v, alpha / r", "A, v", "init returns (an array, an array, an array), should return (B, A, v, s)"),
        ("A and B exchanged", "np.zeros((out, r)), A", "A, np.zeros((out, r))", "the order is (B, A, v, s)"),
        ("alpha / r at v", "v = rng.uniform", "v = alpha / r * rng.uniform", "alpha / r scales B A only, not v itself"),
        ("alpha / r at A", "A = rng.uniform", "A = alpha / r * rng.uniform", "alpha / r scales B A only, not A itself"),
        ("bound by nnz", "v = rng.uniform(-bound, bound,", "v = rng.uniform(-(nnz**-0.5), nnz**-0.5,",
         "the bound is 1 / sqrt(nnz)"),
        ("alpha is the scale", "alpha / r", "alpha", "alpha, not alpha / r"),
        ("alpha // r", "alpha / r", "alpha // r", "alpha // r cuts"),
        ("r / alpha", "alpha / r", "r / alpha", "s is wrong: r / alpha"),
        ("B is random", "np.zeros((out, r))", "rng.uniform(-bound, bound, (out, r))", "B is wrong everywhere"),
        ("B is (r, out)", "np.zeros((out, r))", "np.zeros((r, out))", "B has shape"),
        ("A is (in, r)", "(r, width)", "(width, r)", "A has shape ("),
        ("A is zero", "A = rng.uniform(-bound, bound, (r, width))", "A = np.zeros((r, width))", "A is zero everywhere"),
        ("v is zero", "v = rng.uniform(-bound, bound, nnz)", "v = np.zeros(nnz)", "v is zero everywhere"),
        ("v is a matrix", "bound, nnz)", "bound, (out, width))", "v has shape ("),
        ("normal", "rng.uniform(-bound, bound, (r, width))", "bound * rng.standard_normal((r, width))", "A is not uniform"),
        ("from 0 to bound", "v = rng.uniform(-bound", "v = rng.uniform(0", "both signs"),
        ("bound by outputs", "width**-0.5", "out**-0.5", "1 / sqrt(out)"),
        ("bound by rank", "A = rng.uniform(-bound, bound,", "A = rng.uniform(-(r**-0.5), r**-0.5,", "the bound is 1 / sqrt(r)"),
        ("no root", "width**-0.5", "1 / width", "its root is missing"),
        ("PyTorch's default gain", "width**-0.5", "(6 / width) ** 0.5", "sqrt(6 / in)"),
        ("variance 1 / in", "width**-0.5", "(3 / width) ** 0.5", "gives variance 1 / in"),
        ("another generator, same seed", "v = rng", "v = np.random.default_rng(seed)", "A and v are the same random numbers"),
        ("one row for all of A", "bound, (r, width))", "bound, width) + np.zeros((r, 1))", "A's rows are the same"),
        ("the seed is not used", "default_rng(seed)", "default_rng()", "a second call with the same seed"),
        ("always the same seed", "default_rng(seed)", "default_rng(0)", "two seeds give the same numbers"),
    ],
    "forward": [
        ("nothing returned", "return X @ W.T", "X @ W.T", "is None"),
        ("no alpha / r", "s * B @ A", "B @ A", "alpha / r is missing"),
        ("S scaled too", ADD, "W.flat[I] += s * v", "S is scaled by alpha / r too"),
        ("overwritten", ADD, "W.flat[I] = v", "overwrites s B A"),
        ("S forgotten", ADD, "", "S is missing"),
        ("B A forgotten", "W = s * B @ A", "W = 0 * B @ A", "B A is missing"),
        ("a copy is changed", ADD, "W.flatten()[I] += v", "S is missing"),
        ("columns first", ADD, "W[I % len(W), I // len(W)] += v", "column by column"),
        ("divided by out", ADD, "W[I // len(W), I % len(W)] += v", "out of bounds"),
        ("no transpose", "return X @ W.T", "return X @ W", "mismatch"),
        ("transposed output", "return X @ W.T", "return (X @ W.T).T", "transposed"),
        ("one token only", "return X @ W.T", "return (X.reshape(-1, X.shape[-1])[0] @ W.T)", "has shape"),
        ("no leading axes back", "return X @ W.T", "return X.reshape(-1, X.shape[-1]) @ W.T", "has shape"),
        ("B scaled in place", "W = s * B @ A", "B *= s\n    W = B @ A", "B was changed by the call"),
        ("the mean over inputs", "return X @ W.T", "return X @ W.T / X.shape[-1]", "times what it should be"),
        ("v subtracted", ADD, "W.flat[I] -= v", "v is subtracted"),
    ],
    "backward": [
        ("nothing returned", RETURN, RETURN.replace("return ", ""), "should return (dX, dB, dA, dv)"),
        ("three of four", RETURN, "return s * dW @ A.T, s * B.T @ dW, dW.flat[I]", "returns (an array, an array, an array)"),
        ("zeros", RETURN, "return 0 * X, 0 * B, 0 * A, 0 * v", "dX (X (3, "),
        ("no alpha / r at B", "s * dW @ A.T", "dW @ A.T", "is wrong: alpha / r is missing"),
        ("no alpha / r at A", "s * B.T @ dW", "B.T @ dW", "is wrong: alpha / r is missing"),
        ("alpha / r twice", "dW = G.res", "dW = s * G.res", "alpha / r stands there twice"),
        ("alpha / r at v", "dW.flat[I]", "s * dW.flat[I]", "belongs to B and A, not to v"),
        ("dX without S", ADD, "", "S is missing"),
        ("dX without alpha / r", "W = s * B @ A", "W = B @ A", "alpha / r is missing"),
        ("W overwritten", ADD, "W.flat[I] = v", "overwrites s B A"),
        ("S scaled", ADD, "W.flat[I] += s * v", "S is scaled by alpha / r too"),
        ("all of dW", "dW.flat[I]", "dW", "dv (X"),
        ("dv in columns first order", "dW.flat[I]", "dW.T.flat[I]", "column by column"),
        ("dW transposed", "dW = G.reshape(-1, len(B)).T @ X.reshape(-1, A.shape[1])",
         "dW = X.reshape(-1, A.shape[1]).T @ G.reshape(-1, len(B))", "mismatch"),
        ("the mean over tokens", "dW = G.res", "dW = 1 / (X.size // X.shape[-1]) * G.res", "divided by the number of tokens"),
        ("one batch only", "dW = G.reshape(-1, len(B)).T @ X.reshape(-1, A.shape[1])",
         "dW = (G.T @ X if X.ndim == 2 else G.reshape(-1, len(B))[:3].T @ X.reshape(-1, A.shape[1])[:3])", "dB (X (2, 3, "),
        ("leading axes lost", "return G @ W", "return G.reshape(-1, len(B)) @ W", "has shape"),
        ("sign", "return G @ W", "return -G @ W", "wrong sign"),
        ("dA and dB exchanged", "s * dW @ A.T, s * B.T @ dW", "s * B.T @ dW, s * dW @ A.T", "the order is (dX, dB, dA, dv)"),
        ("B scaled in place", "W = s * B @ A", "B *= s\n    W = B @ A", "B was changed by the call"),
        ("v scaled in place", RETURN, f"found = {RETURN.removeprefix('return ')}\n    v *= 2\n    return found",
         "v was changed by the call"),
    ],
    "factored_forward": [
        ("nothing returned", "return Y.reshape", "Y.reshape", "is None"),
        ("no alpha / r", "s * (rows", "(rows", "alpha / r is missing"),
        ("S scaled too", FULL, "s * (S @ rows.T).T", "S is scaled by alpha / r too"),
        ("S forgotten", f" + {FULL}", "", "S is missing"),
        ("W built", "Y = s * (rows @ A.T) @ B.T + (S @ rows.T).T", "Y = rows @ (s * B @ A + S).T", "154 TB"),
        ("S dense", FULL, "rows @ S.toarray().T", "154 TB"),
        ("S dense, by hand", FULL, "rows @ (np.zeros((out, width)) + S).T", "154 TB"),
        ("B A first", "(rows @ A.T) @ B.T", "rows @ (B @ A).T", "154 TB"),
        ("columns first", "np.divmod(I, width)", "(I % out, I // out)", "column by column"),
        ("divided by out", "np.divmod(I, width)", "np.divmod(I, out)", "exceeds matrix dimension"),
        ("the last of a row", f"B.T + {FULL}", "B.T\n    Y[:, I // width] += rows[:, I % width] * v",
         "of several places in one row only the last one counts: add"),
        ("leading axes lost", "return Y.reshape(*X.shape[:-1], out)", "return Y", "has shape"),
        ("transposed", FULL, "(S @ rows.T)", "could not be broadcast"),
        ("X scaled in place", "rows = X.reshape(-1, width)", "rows = X.reshape(-1, width)\n    rows *= s",
         "X was changed by the call"),
        ("v subtracted", "+ (S @", "- (S @", "v is subtracted"),
    ],
    "factored_backward": [
        ("nothing returned", "return dX", "dX", "should return (dX, dB, dA, dv)"),
        ("dW built", PAIRS, "(g.T @ x).flat[I]", "154 TB"),
        ("dW built by brackets", "s * g.T @ (x @ A.T)", "s * g.T @ x @ A.T", "154 TB"),
        ("B^T dW", "gB.T @ x", "s * B.T @ (g.T @ x)", "154 TB"),
        ("W built", "dX = gB @ A + (S.T @ g.T).T", "dX = g @ (s * B @ A + S)", "154 TB"),
        ("no alpha / r at B", "s * g.T @ (x", "g.T @ (x", "is wrong: alpha / r is missing"),
        ("no alpha / r at A", "gB.T @ x", "(g @ B).T @ x", "is wrong: alpha / r is missing"),
        ("no alpha / r in dX", "dX = gB @ A", "dX = g @ B @ A", "is wrong: alpha / r is missing"),
        ("alpha / r twice at A", "gB.T @ x", "s * gB.T @ x", "alpha / r stands there twice"),
        ("alpha / r at v", PAIRS, f"s * {PAIRS}", "belongs to B and A, not to v"),
        ("S scaled", "(S.T @ g.T).T", "s * (S.T @ g.T).T", "S is scaled by alpha / r too"),
        ("dX without S", " + (S.T @ g.T).T", "", "S is missing"),
        ("not transposed", "(S.T @ g.T).T", "(S @ g.T).T", "mismatch"),
        ("dX only", "return dX.reshape(X.shape), s * g.T @ (x @ A.T), gB.T @ x, dv", "return dX.reshape(X.shape)",
         "returns an array, should return (dX, dB, dA, dv)"),
        ("dA and dB exchanged", "s * g.T @ (x @ A.T), gB.T @ x", "gB.T @ x, s * g.T @ (x @ A.T)",
         "the order is (dX, dB, dA, dv)"),
        ("no sum over tokens", PAIRS, "g[:, rows] * x[:, cols]", "axis more (a sum over it is missing?)"),
        ("the mean over tokens", PAIRS, "(g[:, rows] * x[:, cols]).mean(0)", "divided by the number of tokens"),
        ("rows and columns exchanged", PAIRS, "(g[:, cols % out] * x[:, rows % width]).sum(0)", "dv (X"),
        ("columns first", "np.divmod(I, width)", "(I % out, I // out)", "column by column"),
        ("the last of a column", " + (S.T @ g.T).T", "\n    dX[:, cols] += g[:, rows] * v",
         "of several places in one column only the last one counts: add"),
        ("leading axes lost", "dX.reshape(X.shape)", "dX", "has shape"),
        ("summed over all", PAIRS, "(g[:, rows] * x[:, cols]).sum()", "summed over every axis?"),
    ],
    "counts": [
        ("nothing returned", "return {name", "{name", "None"),
        ("a tuple", 'return {name: {"parameters": n, "bytes": 6 * n + 8 * places}', "return {name: (n, 6 * n + 8 * places)",
         "should be a dict with the keys 'parameters', 'bytes'"),
        ("rest forgotten", "full = rest + ", "full = ", "rest is missing"),
        ("rest forgotten, low rank", "low_rank = rest + ", "low_rank = ", "rest is missing"),
        ("one of each matrix", "sum(out * width * many", "sum(out * width", "how many there are of a matrix is forgotten"),
        ("one of each matrix, low rank", "sum(rank * (out + width) * many", "sum(rank * (out + width)",
         "how many there are of a matrix is forgotten"),
        ("rank forgotten", "sum(rank * (out + width)", "sum((out + width)", "r is missing"),
        ("W is trained as well", "low_rank = rest +", "low_rank = full +", "the full matrices are counted too"),
        ("nnz forgotten", "(low_rank + nnz, nnz)", "(low_rank, nnz)", "nnz is missing"),
        ("rounded", "sum(int(delta * out * width)", "sum(round(delta * out * width)", "nnz is rounded, it should be cut"),
        ("cut once", "nnz = sum(int(delta * out * width) * many for out, width, many in matrices)",
         "nnz = int(sum(delta * out * width * many for out, width, many in matrices))", "cut for each"),
        ("indices are parameters", "(low_rank + nnz, nnz)", "(low_rank + 2 * nnz, 0)",
         "indices are counted as parameters, they are not trained"),
        ("no indices", "+ 8 * places", "", "indices are missing"),
        ("int32 indices", "8 * places", "4 * places", "4 bytes for an index"),
        ("moments of indices", "8 * places", "24 * places", "indices are counted with moments, they have none"),
        ("rest without moments", "6 * n +", "6 * n - 4 * rest +", "rest is counted without moments, it has them too"),
        ("weights only", "6 * n +", "2 * n +", "Adam's two moments are missing"),
        ("one moment", "6 * n +", "4 * n +", "only one moment"),
        ("float32", "6 * n +", "12 * n +", "bfloat16 has 2"),
        ("gradients too", "6 * n +", "8 * n +", "gradients are counted too"),
        ("floats", "6 * n +", "6.0 * n +", "a float; should be an int"),
    ],
    "adam": [
        ("nothing returned", f"return {STEP}, m, u", f"{STEP}, m, u", "should return (p, m, u)"),
        ("only p", f"return {STEP}, m, u", f"return {STEP}", "adam returns an array, should return (p, m, u)"),
        ("u before m", f"return {STEP}, m, u", f"return {STEP}, u, m", "u is returned in its place: the order is (p, m, u)"),
        ("m squared", "(1 - b2) * g**2", "(1 - b2) * m**2", "m is squared, should be g"),
        ("no bias correction", STEP, "p - lr * m / (np.sqrt(u) + eps)", "bias correction is missing"),
        ("none of u", STEP, "p - lr * (m / (1 - b1**t)) / (np.sqrt(u) + eps)", "bias correction of u is missing"),
        ("none of m", STEP, "p - lr * m / (np.sqrt(u / (1 - b2**t)) + eps)", "bias correction of m is missing"),
        ("t from 0", "u = b2 * u", "t = t - 1\n    u = b2 * u", "t is one too small"),
        ("t + 1", "u = b2 * u", "t = t + 1\n    u = b2 * u", "t is one too large"),
        ("t stands still", "u = b2 * u", "t = 1\n    u = b2 * u", "t is 1 in every update"),
        ("eps in the root", "np.sqrt(u / (1 - b2**t)) + eps", "np.sqrt(u / (1 - b2**t) + eps)", "eps is inside of the root"),
        ("eps fixed", "+ eps", "+ 1e-8", "eps is missing, or not the argument"),
        ("betas swapped", "m = b1 * m + (1 - b1) * g", "m = b2 * m + (1 - b2) * g", "b2 stands there for b1"),
        ("1 - b1 swapped", "m = b1 * m + (1 - b1) * g", "m = (1 - b1) * m + b1 * g", "b1 and 1 - b1 are swapped"),
        ("g not squared", None, """
def adam(p, g, m, u, t, lr, b1=0.9, b2=0.999, eps=1e-8):
    m = b1 * m + (1 - b1) * g
    u = b2 * u + (1 - b2) * g
    return p - lr * (m / (1 - b1**t)) / (np.sqrt(abs(u) / (1 - b2**t)) + eps), m, u
""", "g is not squared"),
        ("the moments of before", None, """
def adam(p, g, m, u, t, lr, b1=0.9, b2=0.999, eps=1e-8):
    p = p - lr * (m / (1 - b1**t)) / (np.sqrt(u / (1 - b2**t)) + eps)
    return p, b1 * m + (1 - b1) * g, b2 * u + (1 - b2) * g**2
""", "of before the update"),
        ("1 - b2 forgotten", "(1 - b2) * g**2", "g**2", "1 - b2 is missing"),
        ("uphill", "return p - lr", "return p + lr", "uphill"),
        ("no root", "np.sqrt(u / (1 - b2**t))", "(u / (1 - b2**t))", "the root of u is missing"),
        ("the step only", "return p - lr", "return lr", "the step is returned"),
        ("corrected moments returned", f"return {STEP}, m, u",
         "m, u = m / (1 - b1**t), u / (1 - b2**t)\n    return p - lr * m / (np.sqrt(u) + eps), m, u",
         "m / (1 - b1^t) is returned, should be m itself"),
        ("corrected u returned", f"return {STEP}, m, u",
         "u = u / (1 - b2**t)\n    return p - lr * (m / (1 - b1**t)) / (np.sqrt(u) + eps), m, u",
         "u / (1 - b2^t) is returned, should be u itself"),
        ("p in place", f"return {STEP}, m, u", f"p -= p - ({STEP})\n    return p, m, u", "p was changed by the call"),
        ("m in place", "m = b1 * m + (1 - b1) * g", "m *= b1\n    m += (1 - b1) * g", "m was changed by the call"),
        ("betas fixed", "u = b2 * u + (1 - b2) * g**2", "u = 0.999 * u + 0.001 * g**2", "b2 is 0.999, not the argument"),
    ],
    "train": [
        ("nothing returned", "return [tuple(p[:3]), tuple(p[3:])]", "pass",
         "train returns None, should return [(B, A, v), (B, A, v)]"),
        ("flat list", "return [tuple(p[:3]), tuple(p[3:])]", "return p",
         "returns (an array, an array, an array, an array, an array, an array), should return [(B, A, v), (B, A, v)]"),
        ("I too", "return [tuple(p[:3]), tuple(p[3:])]", "return [(*p[:3], I1), (*p[3:], I2)]",
         "returns ((an array, an array, an array, an array), (an array, an array, an array, an array)), should"),
        ("the loss", "return [tuple(p[:3]), tuple(p[3:])]", "return ((P - Y) ** 2).mean()", "train returns a number, should"),
        ("t from 0", "range(1, 601)", "range(600)", "is the first t 0"),
        ("NaN", "t, 0.01)", "t, np.inf)", "(learning rate too large)?"),
        ("B and A exchanged", "return [tuple(p[:3])", "return [(p[1], p[0], p[2])",
         "has shape (2, 12), should have (16, 2); the order is (B, A, v)"),
        ("the start returned", "return [tuple(p[:3]), tuple(p[3:])]", "return [layer[:3] for layer in layers]",
         "still as at the start: B of layer 1, A of layer 1, v of layer 1"),
        ("v not trained", UPDATE, f"if k % 3 != 2:\n                {UPDATE}", "as at the start: v of layer 1, v of layer 2"),
        ("A not trained", UPDATE, f"if k % 3 != 1:\n                {UPDATE}", "as at the start: A of layer 1, A of layer 2"),
        ("B not trained", UPDATE, f"if k % 3:\n                {UPDATE}", "still as at the start: B of layer 1"),
        ("the last layer only", UPDATE, f"if k > 2:\n                {UPDATE}", "as at the start: B of layer 1, A of layer 1, v"),
        ("no alpha / r", "p = [", "s = 1.0\n    p = [", "as if alpha / r were missing"),
        ("no tanh forward", "np.tanh(forward(X, *p[:3], I1, s))", "forward(X, *p[:3], I1, s)", "the loss on unseen data is"),
        ("no tanh at all", None, """
def train(X, Y, layers, s):
    p = [array.copy() for layer in layers for array in layer[:3]]
    m, u = [0 * array for array in p], [0 * array for array in p]
    for t in range(1, 601):
        H = forward(X, *p[:3], layers[0][3], s)
        P = forward(H, *p[3:], layers[1][3], s)
        dH, *second = backward(2 * (P - Y) / Y.size, H, *p[3:], layers[1][3], s)
        first = backward(dH, X, *p[:3], layers[0][3], s)[1:]
        for k, g in enumerate([*first, *second]):
            p[k], m[k], u[k] = adam(p[k], g, m[k], u[k], t, 0.01)
    return [tuple(p[:3]), tuple(p[3:])]
""", "as if tanh were missing"),
        ("S scaled too", None, """
def train(X, Y, layers, s):
    I1, I2 = layers[0][3], layers[1][3]
    p = [array.copy() for layer in layers for array in layer[:3]]
    m, u = [0 * array for array in p], [0 * array for array in p]
    for t in range(1, 601):
        H = np.tanh(forward(X, p[0], p[1], s * p[2], I1, s))
        P = forward(H, p[3], p[4], s * p[5], I2, s)
        dH, *second = backward(2 * (P - Y) / Y.size, H, p[3], p[4], s * p[5], I2, s)
        first = backward(dH * (1 - H * H), X, p[0], p[1], s * p[2], I1, s)[1:]
        for k, g in enumerate([*first, *second]):
            p[k], m[k], u[k] = adam(p[k], g, m[k], u[k], t, 0.01)
    return [tuple(p[:3]), tuple(p[3:])]
""", "as if S were scaled by alpha / r too"),
        ("no 1 - H * H", "dH * (1 - H * H)", "dH", "such as 1 - H * H"),
        ("moments anew", "H = np.tanh", "m, u = [0 * a for a in p], [0 * a for a in p]\n        H = np.tanh",
         "Moments that start anew?"),
        ("one update", "range(1, 601)", "range(1, 2)", "as at the start: A of layer 1, A of layer 2"),
        ("uphill", "2 * (P - Y)", "2 * (Y - P)", "uphill"),
        ("gradients in the wrong order", "first + second", "second + first", "could not be broadcast"),
        ("plain descent", UPDATE, "p[k] = p[k] - 0.01 * g", "Plain descent, not Adam?"),
        ("too large a step", "t, 0.01)", "t, 3.0)", "the loss on unseen data is"),
    ],
}

OTHERS = {
    "draw_support": {
        "a permutation": """
def draw_support(out, width, delta, seed):
    nnz = int(delta * out * width)
    return np.array(sorted(np.random.default_rng(seed).permutation(out * width)[:nnz].tolist()), dtype=np.int64)
""",
        "the smallest random numbers": """
def draw_support(out, width, delta, seed):
    noise = np.random.default_rng(seed).random(out * width)
    return np.sort(np.argpartition(noise, int(delta * out * width))[: int(delta * out * width)]).astype(np.int32)
""",
        "Python's random": """
def draw_support(out, width, delta, seed):
    import random

    return np.array(sorted(random.Random(seed).sample(range(out * width), int(delta * out * width))))
""",
        "again until distinct": """
def draw_support(out, width, delta, seed):
    rng, chosen = np.random.default_rng(seed), set()
    while len(chosen) < int(delta * (out * width)):
        chosen.add(int(rng.integers(out)) * width + int(rng.integers(width)))
    return np.array(sorted(chosen), dtype=int)
""",
        "the old generator": """
def draw_support(out, width, delta, seed):
    np.random.seed(seed)
    I = np.random.choice(out * width, int(delta * out * width), replace=False)
    I.sort()
    return I
""",
    },
    "init": {
        "v first": """
def init(out, width, r, nnz, alpha, seed):
    rng, b = np.random.default_rng(seed), 1 / np.sqrt(width)
    v = rng.uniform(-b, b, size=(nnz,))
    A = rng.uniform(-b, b, size=(r, width))
    return [np.zeros((out, r)), A, v, alpha / r]
""",
        "scaled from 0 to 1": """
def init(out, width, r, nnz, alpha, seed):
    numbers = (2 * np.random.default_rng(seed).random(r * width + nnz) - 1) / width**0.5
    return np.zeros([out, r]), numbers[: r * width].reshape(r, width), numbers[r * width:], np.float64(alpha) / r
""",
        "Kaiming by its formula": """
def init(out, width, r, nnz, alpha, seed):
    one, two = np.random.SeedSequence(seed).spawn(2)
    gain = np.sqrt(2 / (1 + 5))
    bound = np.sqrt(3) * gain / np.sqrt(width)
    bound = min(bound, 1 / np.sqrt(width))
    A = np.random.default_rng(one).uniform(-bound, bound, (r, width))
    return np.zeros((out, r)), A, np.random.default_rng(two).uniform(-bound, bound, nnz), alpha / r
""",
    },
    "forward": {
        "loops over places": """
def forward(X, B, A, v, I, s):
    W = np.dot(B, A) * s
    for k in range(len(I)):
        i, j = divmod(int(I[k]), A.shape[1])
        W[i, j] = W[i, j] + v[k]
    return np.einsum("...j,ij->...i", X, W)
""",
        "SciPy": """
def forward(X, B, A, v, I, s):
    S = csr_array((v, np.divmod(I, A.shape[1])), shape=(B.shape[0], A.shape[1]))
    W = np.asarray(S.toarray() + s * (B @ A))
    return np.tensordot(X, W, axes=(-1, 1))
""",
        "add.at on rows of tokens": """
def forward(X, B, A, v, I, s):
    W = (B * s) @ A
    np.add.at(W, (I // W.shape[1], I % W.shape[1]), v)
    return (W @ X.reshape(-1, X.shape[-1]).T).T.reshape(X.shape[:-1] + (len(W),))
""",
        "bincount": """
def forward(X, B, A, v, I, s):
    out, width = B.shape[0], A.shape[1]
    S = np.bincount(I, weights=v, minlength=out * width).reshape(out, width)
    return s * (X @ (B @ A).T) + X @ S.T
""",
    },
    "backward": {
        "einsum": """
def backward(G, X, B, A, v, I, s):
    rows, cols = np.divmod(I, A.shape[1])
    W = s * np.einsum("iq,qj->ij", B, A)
    W[rows, cols] += v
    g, x = G.reshape(-1, G.shape[-1]), X.reshape(-1, X.shape[-1])
    dW = np.einsum("ti,tj->ij", g, x)
    return np.einsum("...i,ij->...j", G, W), s * np.einsum("ij,qj->iq", dW, A), s * np.einsum("iq,ij->qj", B, dW), dW[rows, cols]
""",
        "token by token": """
def backward(G, X, B, A, v, I, s):
    W = s * (B @ A)
    np.add.at(W.reshape(-1), I, v)
    dX, dW = np.empty_like(X), np.zeros_like(W)
    for place in np.ndindex(*X.shape[:-1]):
        dX[place] = W.T @ G[place]
        dW += np.outer(G[place], X[place])
    return [dX, s * (dW @ A.T), s * (B.T @ dW), dW.ravel()[I]]
""",
        "brackets moved": """
def backward(G, X, B, A, v, I, s):
    shape = X.shape
    G, X = G.reshape(-1, len(B)), X.reshape(-1, A.shape[1])
    S = np.zeros(len(B) * A.shape[1])
    S[I] = v
    dX = G @ S.reshape(len(B), -1) + s * (G @ B) @ A
    dv = np.array([G[:, k // A.shape[1]] @ X[:, k % A.shape[1]] for k in I])
    return dX.reshape(shape), s * G.T @ (X @ A.T), s * (G @ B).T @ X, dv
""",
        "tensordot": """
def backward(G, X, B, A, v, I, s):
    lead = tuple(range(X.ndim - 1))
    dW = np.tensordot(G, X, (lead, lead))
    S = csr_array((v, np.divmod(I, A.shape[1])), (len(B), A.shape[1])).toarray()
    return np.dot(G, s * B @ A + S), (s * dW).dot(A.T), np.dot((s * B).T, dW), np.take(dW, I)
""",
    },
    "factored_forward": {
        "add.at": """
def factored_forward(X, B, A, v, I, s):
    rows, cols = np.divmod(I, A.shape[1])
    Y = s * (X @ A.T) @ B.T
    np.add.at(Y, (..., rows), X[..., cols] * v)
    return Y
""",
        "a loop over places": """
def factored_forward(X, B, A, v, I, s):
    Y = (X @ A.T) @ (s * B.T)
    for k, value in zip(I, v):
        Y[..., k // A.shape[1]] += value * X[..., k % A.shape[1]]
    return Y
""",
        "dense times sparse": """
def factored_forward(X, B, A, v, I, s):
    from scipy.sparse import coo_array

    rows, cols = I // A.shape[1], I % A.shape[1]
    ST = coo_array((v, (cols, rows)), shape=(A.shape[1], len(B))).tocsc()
    flat = X.reshape(-1, X.shape[-1])
    Y = np.einsum("tq,iq->ti", np.einsum("tj,qj->tq", flat, A), B) * s + flat @ ST
    return Y.reshape(X.shape[:-1] + (len(B),))
""",
        "a bincount for each token": """
def factored_forward(X, B, A, v, I, s):
    rows, cols = np.divmod(I, A.shape[1])
    flat = X.reshape(-1, A.shape[1])
    S = np.stack([np.bincount(rows, v * x[cols], len(B)) for x in flat]).reshape(*X.shape[:-1], len(B))
    return S + s * X.dot(A.T).dot(B.T)
""",
    },
    "factored_backward": {
        "add.at": """
def factored_backward(G, X, B, A, v, I, s):
    rows, cols = np.divmod(I, A.shape[1])
    g, x = G.reshape(-1, len(B)), X.reshape(-1, A.shape[1])
    dX = s * (G @ B) @ A
    np.add.at(dX, (..., cols), G[..., rows] * v)
    return dX, g.T @ (s * (x @ A.T)), s * (g @ B).T @ x, np.einsum("tk,tk->k", g[:, rows], x[:, cols])
""",
        "a loop over places": """
def factored_backward(G, X, B, A, v, I, s):
    width = A.shape[1]
    g, x = G.reshape(-1, len(B)), X.reshape(-1, width)
    dX, dv = (g @ B) @ (s * A), np.zeros(len(v))
    for k in range(len(I)):
        i, j = divmod(int(I[k]), width)
        dX[:, j] += v[k] * g[:, i]
        dv[k] = np.dot(g[:, i], x[:, j])
    return dX.reshape(X.shape), s * (g.T @ (x @ A.T)), s * ((g @ B).T @ x), dv
""",
        "token by token": """
def factored_backward(G, X, B, A, v, I, s):
    rows, cols = I // A.shape[1], I % A.shape[1]
    dX, dB, dA, dv = np.zeros(X.shape), np.zeros(B.shape), np.zeros(A.shape), np.zeros(v.shape)
    for t in np.ndindex(*X.shape[:-1]):
        h, z = G[t] @ B, A @ X[t]
        dX[t] = s * h @ A + np.bincount(cols, v * G[t][rows], A.shape[1])
        dB += s * np.outer(G[t], z)
        dA += s * np.outer(h, X[t])
        dv += G[t][rows] * X[t][cols]
    return dX, dB, dA, dv
""",
        "einsum over batches": """
def factored_backward(G, X, B, A, v, I, s):
    rows, cols = np.divmod(I, A.shape[1])
    lead = tuple(range(X.ndim - 1))
    S = csr_array((v, (rows, cols)), (len(B), A.shape[1]))
    dX = s * np.einsum("...q,qj->...j", G @ B, A) + (G.reshape(-1, len(B)) @ S).reshape(X.shape)
    dB = s * np.tensordot(G, X @ A.T, (lead, lead))
    return dX, dB, s * np.tensordot(G @ B, X, (lead, lead)), np.sum(G[..., rows] * X[..., cols], axis=lead)
""",
    },
    "counts": {
        "a loop": """
def counts(matrices, rank, delta, rest):
    full = low = rest
    nnz = 0
    for out, width, many in matrices:
        for _ in range(many):
            full += out * width
            low += rank * out + rank * width
            nnz += int(delta * out * width)
    return {
        "full": {"parameters": full, "bytes": 2 * full + 2 * full + 2 * full},
        "low_rank": {"parameters": low, "bytes": 2 * low + 2 * (2 * low)},
        "sltrain": {"parameters": low + nnz, "bytes": 2 * (low + nnz) + 4 * (low + nnz) + 8 * nnz}}
""",
        "arrays": """
def counts(matrices, rank, delta, rest):
    out, width, many = np.array(matrices).T
    nnz = np.dot(np.floor(delta * out * width).astype(int), many)
    sizes = {"full": np.dot(out * width, many), "low_rank": np.dot(rank * (out + width), many)}
    sizes["sltrain"] = sizes["low_rank"] + nnz
    found = {}
    for name, size in sizes.items():
        n = int(size) + rest
        found[name] = dict(parameters=n, bytes=6 * n + (8 * int(nnz) if name == "sltrain" else 0))
    return found
""",
        "a function for a matrix": """
def counts(matrices, rank, delta, rest):
    import math

    def of(name, out, width):
        if name == "full":
            return out * width, 0
        places = math.floor(delta * out * width) if name == "sltrain" else 0
        return rank * (out + width) + places, places

    result = {}
    for name in ("sltrain", "low_rank", "full"):
        pairs = [np.multiply(many, of(name, out, width)).tolist() for out, width, many in matrices]
        n, places = map(sum, zip(*pairs))
        result[name] = {"bytes": (n + rest) * 3 * 2 + places * 8, "parameters": n + rest}
    return result
""",
    },
    "adam": {
        "one factor in front": """
def adam(p, g, m, u, t, lr, b1=0.9, b2=0.999, eps=1e-8):
    m, u = m + (1 - b1) * (g - m), u + (1 - b2) * (g * g - u)
    root = np.sqrt(1 - b2**t)
    return p - lr * root / (1 - b1**t) * m / (np.sqrt(u) + eps * root), m, u
""",
        "copies in place": """
def adam(p, g, m, u, t, lr, b1=0.9, b2=0.999, eps=1e-8):
    p, m, u = p.copy(), m.copy(), u.copy()
    m *= b1
    m += (1 - b1) * g
    u *= b2
    u += (1 - b2) * np.square(g)
    p -= lr * np.divide(m / (1 - b1**t), (u / (1 - b2**t)) ** 0.5 + eps)
    return [p, m, u]
""",
        "entry by entry": """
def adam(p, g, m, u, t, lr, b1=0.9, b2=0.999, eps=1e-8):
    new = [np.empty(p.shape) for _ in range(3)]
    for i in np.ndindex(*p.shape):
        a = b1 * m[i] + (1 - b1) * g[i]
        b = b2 * u[i] + (1 - b2) * g[i] ** 2
        new[0][i] = p[i] - lr * a / (1 - b1**t) / ((b / (1 - b2**t)) ** 0.5 + eps)
        new[1][i], new[2][i] = a, b
    return tuple(new)
""",
    },
    "train": {
        "factored, lists of lists": """
def train(X, Y, layers, s):
    weights = [[array.copy() for array in layer[:3]] for layer in layers]
    state = [[(np.zeros_like(a), np.zeros_like(a)) for a in layer] for layer in weights]
    places = [layer[3] for layer in layers]
    for t in range(500):
        inputs = [X, np.tanh(factored_forward(X, *weights[0], places[0], s))]
        grad = 2 * (factored_forward(inputs[1], *weights[1], places[1], s) - Y) / Y.size
        for k in (1, 0):
            down, *gradients = factored_backward(grad, inputs[k], *weights[k], places[k], s)
            grad = down * (1 - inputs[k] ** 2)
            for j, g in enumerate(gradients):
                weights[k][j], *state[k][j] = adam(weights[k][j], g, *state[k][j], t + 1, 0.01)
    return weights
""",
        "batches": """
def train(X, Y, layers, s):
    rng, t = np.random.default_rng(0), 0
    p = [[np.array(a) for a in layer[:3]] for layer in layers]
    m, u = ([[0 * a for a in layer] for layer in p] for _ in range(2))
    for epoch in range(150):
        for rows in np.split(rng.permutation(len(X)), 8):
            t += 1
            H = np.tanh(forward(X[rows], *p[0], layers[0][3], s))
            G = 2 / Y[rows].size * (forward(H, *p[1], layers[1][3], s) - Y[rows])
            found = [None, backward(G, H, *p[1], layers[1][3], s)]
            found[0] = backward(found[1][0] * (1 - H**2), X[rows], *p[0], layers[0][3], s)
            for k in range(2):
                for j in range(3):
                    p[k][j], m[k][j], u[k][j] = adam(p[k][j], found[k][j + 1], m[k][j], u[k][j], t, 0.005)
    return [tuple(layer) for layer in p]
""",
        "a rate that falls, nothing reused": """
def train(X, Y, layers, s):
    def weight(B, A, v, I):
        W = s * B @ A
        W.flat[I] += v
        return W

    layers = [list(layer) for layer in layers]
    moments = {}
    for t in range(1, 601):
        W1, W2 = (weight(*layer) for layer in layers)
        H = np.tanh(X @ W1.T)
        G = 2 * (H @ W2.T - Y) / Y.size
        for k, dW in ((1, G.T @ H), (0, ((G @ W2) * (1 - H * H)).T @ X)):
            B, A, _, I = layers[k]
            for j, g in enumerate((s * dW @ A.T, s * B.T @ dW, dW.flat[I])):
                m, u = moments.get((k, j), (0, 0))
                m, u = moments[k, j] = 0.9 * m + 0.1 * g, 0.999 * u + 0.001 * g * g
                step = 0.02 * (1 - (t - 1) / 600) * (m / (1 - 0.9**t)) / (np.sqrt(u / (1 - 0.999**t)) + 1e-8)
                layers[k][j] = layers[k][j] - step
    return [layer[:3] for layer in layers]
""",
        "into the arguments": """
def train(X, Y, layers, s):
    m, u = {}, {}
    for t in range(1, 701):
        (B1, A1, v1, I1), (B2, A2, v2, I2) = layers
        H = np.tanh(forward(X, B1, A1, v1, I1, s))
        dH, *of2 = backward((forward(H, B2, A2, v2, I2, s) - Y) * 2 / Y.size, H, B2, A2, v2, I2, s)
        of1 = backward(dH - dH * H * H, X, B1, A1, v1, I1, s)[1:]
        for k, (array, g) in enumerate(zip((B1, A1, v1, B2, A2, v2), [*of1, *of2])):
            new, m[k], u[k] = adam(array, g, m.get(k, 0 * g), u.get(k, 0 * g), t, 0.01)
            array[...] = new
    return [layer[:3] for layer in layers]
""",
    },
}

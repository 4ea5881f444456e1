"""What students write for a2: MISTAKES that must be named, and OTHERS that are right, by task.

A mistake: (what it is, text of the solution, what stands there instead, words the message must have). With None for the text, the
third is the whole cell. An other: {name: the whole cell}.
"""

MISTAKES = {
    "rms_norm": [
        ("no keepdims", "mean(-1, keepdims=True)", "mean(-1)", "keepdims is missing"),
        ("sum, not mean", "(x * x).mean(-1", "(x * x).sum(-1", "sum of the squares is taken, not their mean"),
        ("eps outside of the root", "np.sqrt((x * x).mean(-1, keepdims=True) + eps)",
         "(np.sqrt((x * x).mean(-1, keepdims=True)) + eps)",
         "eps is added to the root, not under it"),
        ("no eps", " + eps", "", "eps is missing"),
        ("no gain", "gain * x", "x", "the gain is missing"),
        ("no root", "np.sqrt((x * x).mean(-1, keepdims=True) + eps)", "((x * x).mean(-1, keepdims=True) + eps)",
         "the root is missing"),
        ("over the tokens", "mean(-1,", "mean(0,", "the mean runs over the tokens"),
        ("one mean", "mean(-1, keepdims=True)", "mean()", "one mean for all tokens"),
        ("LayerNorm", None, """
def rms_norm(x, gain, eps):
    return gain * (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
""", "as in LayerNorm"),
        ("variance", "(x * x).mean(-1, keepdims=True)", "x.var(-1, keepdims=True)",
         "the variance was taken (the mean subtracted), should be the mean of x^2"),
        ("in place", None, """
def rms_norm(x, gain, eps):
    x /= np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    x *= gain
    return x
""", "x was changed by the call"),
        ("nothing returned", "return gain", "y = gain", "is None"),
        ("axis 1", "mean(-1,", "mean(1,", "the mean runs over axis 1"),
        ("by the length", "np.sqrt((x * x).mean(-1, keepdims=True) + eps)",
         "np.linalg.norm(x, axis=-1, keepdims=True)", "no mean, no eps"),
    ],
    "rms_norm_backward": [
        ("one term", "r * (u - normed * (u * normed).mean(-1, keepdims=True))", "r * u", "is wrong: the second term is missing"),
        ("plus", "(u - normed", "(u + normed", "is wrong: the second term is added"),
        ("sum in dx", "(u * normed).mean(", "(u * normed).sum(", "1 / D is missing"),
        ("no gain in dx", "gain * dy", "dy", "is wrong: the gain is missing"),
        ("gain twice", "(u * normed)", "(gain * u * normed)", "the gain is twice"),
        ("no gain in the second term", "(u * normed)", "(dy * normed)", "the gain is missing in the second term"),
        ("power of r", "r * (u - normed * (u * normed)", "(r * u - x * r * (u * x)", "has r where r^3 belongs"),
        ("eps forgotten", " + eps)", ")", "eps is missing"),
        ("r a root", "r = 1 / np.sqrt", "r = np.sqrt", "r is the root, should be 1 / root"),
        ("mean over the tokens in dx", "(u * normed).mean(-1,", "(u * normed).mean(0,", "the mean runs over the tokens"),
        ("dgain not summed", ".reshape(-1, x.shape[-1]).sum(axis=0)", "", "a sum over it is missing"),
        ("dgain over one axis", ".reshape(-1, x.shape[-1]).sum(axis=0)", ".sum(0)", "axis more (a sum over it is missing?)"),
        ("dgain mean", ".sum(axis=0)", ".mean(axis=0)", "the mean over the tokens, not their sum"),
        ("dgain of x", "(dy * normed).reshape", "(dy * x).reshape", "r is missing: it is dy times the normalised x"),
        ("dgain with gain", "(dy * normed).reshape", "(u * normed).reshape", "y is linear in the gain"),
        ("dgain over features", ".reshape(-1, x.shape[-1]).sum(axis=0)", ".sum(-1)", "summed over the features"),
        ("only dx", "return dx, (dy", "return dx  # (dy", "should be a tuple of 2"),
        ("zeros", "return dx, (dy", "return 0 * dx, 0 * (dy", "is zero everywhere"),
        ("dy written to", "gain * dy\n", "np.multiply(dy, gain, out=dy)\n", "dy was changed by the call"),
        ("x written to", "normed, u = x * r, gain * dy", "x *= r; normed, u = x, gain * dy", "x was changed by the call"),
    ],
    "rope": [
        ("neighbours", None, """
def rope(x, start, theta):
    T, d = x.shape[-2:]
    angle = np.arange(start, start + T)[:, None] * theta ** (-np.arange(0, d, 2) / d)
    y = np.empty_like(x)
    y[..., ::2] = x[..., ::2] * np.cos(angle) - x[..., 1::2] * np.sin(angle)
    y[..., 1::2] = x[..., 1::2] * np.cos(angle) + x[..., ::2] * np.sin(angle)
    return y
""", "neighbours (x_2i, x_2i+1) are paired"),
        ("other way", "np.cos(angle), np.sin(angle)", "np.cos(angle), -np.sin(angle)", "turns the wrong way"),
        ("a minus sign", "a * cos - b * sin", "a * cos + b * sin", "the sign of sin in the first half"),
        ("no start", "np.arange(start, start + T)", "np.arange(T)", "`start` is not used"),
        ("positions from 1", "np.arange(start, start + T)", "np.arange(start + 1, start + T + 1)",
         "positions begin one too late"),
        ("end without start", "np.arange(start, start + T)", "np.arange(start, T)", "could not be broadcast"),
        ("along the heads", None, """
def rope(x, start, theta):
    H, d = x.shape[1], x.shape[-1]
    angle = np.arange(start, start + H)[:, None, None] * theta ** (-np.arange(0, d, 2) / d)
    cos, sin = np.cos(angle), np.sin(angle)
    a, b = x[..., :d // 2], x[..., d // 2:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
""", "positions run along the heads"),
        ("exponent without 2", "-np.arange(0, d, 2) / d", "-np.arange(d // 2) / d", "the exponent is -i / d"),
        ("exponent over d/2", "-np.arange(0, d, 2) / d", "-2 * np.arange(0, d, 2) / d", "the exponent is -4i / d"),
        ("exponent positive", "(-np.arange", "(np.arange", "the exponent's sign"),
        ("one angle", "theta ** (-np.arange(0, d, 2) / d)", "np.ones(d // 2)", "all pairs turn by the same angle"),
        ("a overwritten", None, """
def rope(x, start, theta):
    T, d = x.shape[-2:]
    angle = np.arange(start, start + T)[:, None] * theta ** (-np.arange(0, d, 2) / d)
    cos, sin = np.cos(angle), np.sin(angle)
    a, b = x[..., :d // 2], x[..., d // 2:]
    a = a * cos - b * sin
    b = b * cos + a * sin
    return np.concatenate([a, b], axis=-1)
""", "the second half is made of a first half that is turned already"),
        ("in place", None, """
def rope(x, start, theta):
    T, d = x.shape[-2:]
    angle = np.arange(start, start + T)[:, None] * theta ** (-np.arange(0, d, 2) / d)
    cos, sin = np.cos(angle), np.sin(angle)
    a, b = x[..., :d // 2].copy(), x[..., d // 2:].copy()
    x[..., :d // 2], x[..., d // 2:] = a * cos - b * sin, b * cos + a * sin
    return x
""", "x was changed by the call"),
        ("stacked", "np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)",
         "np.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)", "stacked, not concatenated"),
        ("first half only", "b * cos + a * sin]", "b]", "the second half stays as it is"),
    ],
    "rope_backward": [
        ("forwards", "mirror * rope(mirror * dy, start, theta)", "rope(dy, start, theta)",
         "turns as rope does, should turn back"),
        ("-start", "mirror * rope(mirror * dy, start, theta)", "rope(dy, -start, theta)", "positions run from -start upwards"),
        ("-start and back", "mirror * rope(mirror * dy, start, theta)", "rope(dy, -start - dy.shape[2] + 1, theta)",
         "the positions are in reverse order"),
        ("no start", "rope(mirror * dy, start, theta)", "rope(mirror * dy, 0, theta)", "`start` is not used"),
        ("one mirror", "return mirror * rope(", "return rope(", "the second half has the wrong sign"),
        ("the other mirror", "rope(mirror * dy,", "rope(dy,", "changes its sign before it turns"),
        ("unchanged", "mirror * rope(mirror * dy, start, theta)", "dy", "dy came back as it was"),
        ("zeros", "mirror * rope(mirror * dy, start, theta)", "0 * dy", "is zero everywhere"),
        ("1 / theta", "mirror * rope(mirror * dy, start, theta)", "rope(dy, start, 1 / theta)", "theta is inverted"),
        ("None", "return mirror", "dx = mirror", "is None"),
        ("dy mirrored in place", None, """
def rope_backward(dy, start, theta):
    half = dy.shape[-1] // 2
    dy[..., half:] *= -1
    dx = rope(dy, start, theta)
    dx[..., half:] *= -1
    return dx
""", "dy was changed by the call"),
        ("only one term", None, """
def rope_backward(dy, start, theta):
    T, d = dy.shape[-2:]
    angle = np.arange(start, start + T)[:, None] * theta ** (-np.arange(0, d, 2) / d)
    a, b = np.split(dy, 2, axis=-1)
    return np.concatenate([a * np.cos(angle), b * np.cos(angle)], axis=-1)
""", "the terms with sin are missing"),
    ],
    "attention": [
        ("no mask", "s = np.where(np.tri(T, dtype=bool), s, -np.inf)", "pass", "every token sees all"),
        ("masked with 0", "s, -np.inf)", "s, 0)", "every token sees all"),
        ("sees the next", "np.tri(T, dtype=bool)", "np.tri(T, k=1, dtype=bool)", "a token sees the next one"),
        ("not itself", "np.tri(T, dtype=bool)", "np.tri(T, k=-1, dtype=bool)", "a token does not see itself"),
        ("upside down", "np.tri(T, dtype=bool)", "np.tri(T, dtype=bool).T", "the mask is upside down"),
        ("masked after the softmax", None, """
def attention(q, k, v):
    s = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    e = np.exp(s - s.max(-1, keepdims=True))
    return np.tril(e / e.sum(-1, keepdims=True)) @ v
""", "masked after the softmax"),
        ("over the queries", "e.sum(-1, keepdims=True)", "e.sum(-2, keepdims=True)", "the softmax runs over the queries"),
        ("not divided", "e / e.sum(-1, keepdims=True) @ v", "e @ v", "not divided by the sum of the row"),
        ("no keepdims", "e.sum(-1, keepdims=True)", "e.sum(-1)", "could not be broadcast"),
        ("no scale", " / np.sqrt(d)", "", "1 / sqrt(d) is missing"),
        ("by d", "/ np.sqrt(d)", "/ d", "divided by d, not by sqrt(d)"),
        ("times sqrt(d)", "/ np.sqrt(d)", "* np.sqrt(d)", "multiplied by sqrt(d)"),
        ("by sqrt(T)", "/ np.sqrt(d)", "/ np.sqrt(T)", "divided by sqrt(T)"),
        ("by sqrt(D)", "/ np.sqrt(d)", "/ np.sqrt(q.shape[1] * d)", "divided by sqrt(H d)"),
        ("k q^T", "q @ k.swapaxes(-1, -2)", "k @ q.swapaxes(-1, -2)", "q and k are exchanged"),
        ("overflow", "np.exp(s - s.max(-1, keepdims=True))", "np.exp(s)", "scores of about 10,000"),
        ("one maximum for all rows", "s.max(-1, keepdims=True)", "s.max()", "subtract, in each row, the largest score"),
        ("maximum of all", None, """
def attention(q, k, v):
    s = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    e = np.tril(np.exp(s - s.max(-1, keepdims=True)))
    return e / e.sum(-1, keepdims=True) @ v
""", "the largest score that this query sees"),
        ("in place", "s = q @ k.swapaxes(-1, -2) / np.sqrt(d)", "q /= np.sqrt(d); s = q @ k.swapaxes(-1, -2)",
         "q was changed by the call"),
        ("transposed as in two dimensions", "k.swapaxes(-1, -2)", "k.T", "matmul"),
        ("P transposed", "return e / e.sum(-1, keepdims=True) @ v", "return (e / e.sum(-1, keepdims=True)).swapaxes(-1, -2) @ v",
         "P is transposed"),
    ],
    "attention_backward": [
        ("no scale", " * dp).sum(-1, keepdims=True)) / np.sqrt(d)", " * dp).sum(-1, keepdims=True))", "1 / sqrt(d) is missing"),
        ("no scale in P", "k.swapaxes(-1, -2) / np.sqrt(d)", "k.swapaxes(-1, -2)", "P was computed without 1 / sqrt(d)"),
        ("no keepdims in dS", "(p * dp).sum(-1, keepdims=True)", "(p * dp).sum(-1)", "in dS the row's sum needs keepdims"),
        ("scale by d", "keepdims=True)) / np.sqrt(d)", "keepdims=True)) / d", "divided by d, should be divided by sqrt(d)"),
        ("no average", "(dp - (p * dp).sum(-1, keepdims=True))", "dp", "the sum of P dP over the row is not subtracted"),
        ("plain mean", "(p * dp).sum(-1", "dp.mean(-1", "in dS the mean of dP is subtracted"),
        ("plain sum", "(p * dp).sum(-1", "dp.sum(-1", "in dS the sum of dP is subtracted"),
        ("over a column", "(p * dp).sum(-1", "(p * dp).sum(-2", "the sum runs over the queries"),
        ("P in front forgotten", "ds = p * (dp", "ds = (dp", "the factor P in front is missing"),
        ("no softmax", "p * (dp - (p * dp).sum(-1, keepdims=True))", "dp", "the softmax has a derivative too"),
        ("p (1 - p)", "(dp - (p * dp).sum(-1, keepdims=True))", "(1 - p) * dp", "dS is P (1 - P) dP"),
        ("plus", "(dp - (p", "(dp + (p", "the sum of P dP over the row is added"),
        ("exchanged", "return ds @ k, ds.swapaxes(-1, -2) @ q,", "return ds.swapaxes(-1, -2) @ q, ds @ k,",
         "dq and dk are exchanged"),
        ("dv first", "return ds @ k, ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ do",
         "return p.swapaxes(-1, -2) @ do, ds @ k, ds.swapaxes(-1, -2) @ q", "the order is wrong, should be (dq, dk, dv)"),
        ("dk not transposed", "ds.swapaxes(-1, -2) @ q", "ds @ q", "dS is not transposed"),
        ("dv not transposed", "p.swapaxes(-1, -2) @ do", "p @ do", "P is not transposed"),
        ("dv of v", "p.swapaxes(-1, -2) @ do", "p.swapaxes(-1, -2) @ v", "multiplied by v, should be by do"),
        ("dv scaled", "p.swapaxes(-1, -2) @ do", "p.swapaxes(-1, -2) @ do / np.sqrt(d)", "which belongs to dq and dk only"),
        ("no mask", "np.where(np.tri(T, dtype=bool), q @ k.swapaxes(-1, -2) / np.sqrt(d), -np.inf)",
         "q @ k.swapaxes(-1, -2) / np.sqrt(d)", "P is not masked"),
        ("overflow", "np.exp(s - s.max(-1, keepdims=True))", "np.exp(s)", "scores of about 10,000"),
        ("zeros", "return ds @ k, ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ do", "return 0 * q, 0 * k, 0 * v",
         "is zero everywhere"),
        ("do written to", "return ds", "do *= 0; return ds", "do was changed by the call"),
    ],
    "cross_entropy": [
        ("sum", ".mean()", ".sum()", "the sum, not the mean"),
        ("all positions", ".mean()", ".sum() / kept.size", "divided by all positions"),
        ("-100 counts", "kept = labels != -100", "kept = labels >= -100; labels = np.maximum(labels, 0)",
         "the position labelled -100 counts too"),
        ("-100 indexes", "kept = labels != -100", "kept = labels >= -100", "index -100 is out of bounds"),
        ("V too", ".mean()", ".sum() / z.size", "divided by the number of logits"),
        ("overflow", "z.max(axis=1)", "0 * z.max(axis=1)", "subtract each position's own largest"),
        ("one maximum for all positions", "z.max(axis=1)", "np.full(len(z), z.max())", "subtract each position's own largest"),
        ("ln of 0", None, """
def cross_entropy(logits, labels):
    kept = labels != -100
    z, labels = logits[kept], labels[kept]
    e = np.exp(z - z.max(axis=1, keepdims=True))
    p = e / e.sum(axis=1, keepdims=True)
    return -np.log(p[np.arange(len(z)), labels]).mean()
""", "take no logarithm of a probability"),
        ("sign", "return (logsumexp", "return -(logsumexp", "wrong sign"),
        ("base 2 everywhere", ").mean()", ").mean() / np.log(2)", "the logarithm has base 2"),
        ("maximum not added back", "top + np.log", "np.log", "the maximum that was subtracted is not added again"),
        ("no softmax", "(logsumexp - z", "(-z", "ln of the sum over all words is missing"),
        ("softmax over the tokens", "np.exp(z - top[:, None]).sum(axis=1)", "np.exp(z - top[:, None]).sum(axis=0)",
         "could not be broadcast"),
        ("one minus p", None, """
def cross_entropy(logits, labels):
    kept = labels != -100
    z, labels = logits[kept], labels[kept]
    e = np.exp(z - z.max(axis=1, keepdims=True))
    p = e / e.sum(axis=1, keepdims=True)
    return 1 - p[np.arange(len(z)), labels].mean()
""", "should be minus its logarithm"),
        ("log of the mean", None, """
def cross_entropy(logits, labels):
    kept = labels != -100
    z, labels = logits[kept], labels[kept]
    e = np.exp(z - z.max(axis=1, keepdims=True))
    p = e / e.sum(axis=1, keepdims=True)
    return -np.log(p[np.arange(len(z)), labels].mean())
""", "the logarithm of the mean"),
        ("not reduced", ".mean()", "", "a sum over it is missing"),
        ("all columns", "z[np.arange(len(z)), labels]", "z[:, labels].mean(1)", "takes the labels of all positions"),
    ],
    "cross_entropy_backward": [
        ("not divided", "p / len(p)", "p", "not divided by the number of positions that count"),
        ("all positions", "p / len(p)", "p / labels.size", "divided by all positions"),
        ("by V too", "p / len(p)", "p / p.size", "divided by the number of logits"),
        ("no one-hot", "p[np.arange(len(p)), labels[kept]] -= 1", "pass", "the 1 of the right word is not subtracted"),
        ("one from all", "p[np.arange(len(p)), labels[kept]] -= 1", "p -= 1", "1 is subtracted from all words"),
        ("one from whole columns", "p[np.arange(len(p)), labels[kept]] -= 1", "p[:, labels[kept]] -= 1",
         "1 is subtracted from all words"),
        ("sign", "dz[kept] = p", "dz[kept] = -p", "wrong sign"),
        ("-100 counts", None, """
def cross_entropy_backward(logits, labels):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    onehot = np.arange(logits.shape[-1]) == labels[..., None]
    return (e / e.sum(-1, keepdims=True) - onehot) / (labels != -100).sum()
""", "positions that do not count have a gradient"),
        ("-100 counts, and divided by all", None, """
def cross_entropy_backward(logits, labels):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    onehot = np.arange(logits.shape[-1]) == labels[..., None]
    return (e / e.sum(-1, keepdims=True) - onehot) / labels.size
""", "divided by all positions, and those that do not count have a gradient"),
        ("-100 as word 0", None, """
def cross_entropy_backward(logits, labels):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    onehot = np.arange(logits.shape[-1]) == np.maximum(labels, 0)[..., None]
    return (e / e.sum(-1, keepdims=True) - onehot) / (labels != -100).sum()
""", "as if the label was word 0"),
        ("overflow", "np.exp(logits[kept] - logits[kept].max(axis=1, keepdims=True))", "np.exp(logits[kept])",
         "logits of about 10,000"),
        ("one after dividing", None, """
def cross_entropy_backward(logits, labels):
    kept = labels != -100
    p = np.exp(logits[kept] - logits[kept].max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True) * len(p)
    p[np.arange(len(p)), labels[kept]] -= 1
    dz = np.zeros_like(logits)
    dz[kept] = p
    return dz
""", "subtracted after dividing"),
        ("kept rows only", "return dz", "return dz[kept]", "1 axis fewer: summed over one too many, or not put back?"),
        ("only the right word", None, """
def cross_entropy_backward(logits, labels):
    kept = labels != -100
    p = np.exp(logits[kept] - logits[kept].max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    n = np.arange(len(p))
    dz, rows = np.zeros_like(logits), np.zeros_like(p)
    rows[n, labels[kept]] = p[n, labels[kept]] - 1
    dz[kept] = rows / len(p)
    return dz
""", "only the right word has a gradient"),
        ("zeros", "dz[kept] = p / len(p)", "pass", "is zero everywhere"),
        ("logits overwritten", "dz = np.zeros_like(logits)", "dz = logits; dz[~kept] = 0", "logits was changed by the call"),
        ("softmax over the positions", "p /= p.sum(axis=1, keepdims=True)", "p /= p.sum(axis=0, keepdims=True)",
         "the softmax runs over the positions"),
    ],
    "llama": [
        ("no RoPE", "attention(rope(q, 0, theta), rope(k, 0, theta), v)", "attention(q, k, v)", "RoPE has no effect"),
        ("RoPE on q", "rope(k, 0, theta), v)", "k, v)", "RoPE turns the queries only"),
        ("RoPE on v", ", v)", ", rope(v, 0, theta))", "RoPE turns the values too"),
        ("queries of x", "(linear(h, w[name]).reshape", "(linear(x if name == \"q_proj\" else h, w[name]).reshape",
         "queries are computed from x before its norm"),
        ("no o_proj", "linear(o.swapaxes(1, 2).reshape(B, T, D), w[\"o_proj\"])", "o.swapaxes(1, 2).reshape(B, T, D)",
         "o_proj is not used"),
        ("one norm for both", "h = rms_norm(x, w[\"post_attention_layernorm\"], eps)", "pass",
         "(or the first norm's result is used twice)"),
        ("keys from position 1", "rope(k, 0, theta)", "rope(k, 1, theta)",
         "(one token alone is right, so look at what mixes tokens"),
        ("RoPE before the heads are split", "attention(rope(q, 0, theta), rope(k, 0, theta), v)",
         "attention(*(rope(y.swapaxes(1, 2), 0, theta).swapaxes(1, 2) for y in (q, k)), v)", "takes heads for tokens"),
        ("no last norm", "linear(rms_norm(x, weights[\"model.norm.weight\"], eps), weights", "linear(x, weights",
         "the last norm is missing"),
        ("no residual at attention", "x = x + linear(o", "x = linear(o", "not added to what attention gives"),
        ("no residual at the MLP", "x = x + linear(swiglu", "x = linear(swiglu", "not added to what the MLP gives"),
        ("residual of h", "x = x + linear(o", "x = h + linear(o", "x after the norm, should be x itself"),
        ("heads by reshape", "reshape(B, T, H, -1).swapaxes(1, 2)", "reshape(B, H, T, -1)",
         "the heads are split by a reshape alone"),
        ("heads joined by reshape", "o.swapaxes(1, 2).reshape", "o.reshape", "the heads are joined by a reshape alone"),
        ("H and d exchanged", "reshape(B, T, H, -1).swapaxes(1, 2)", "reshape(B, T, -1, H).transpose(0, 3, 1, 2)",
         "the heads' numbers are interleaved"),
        ("gate and up", "swiglu(linear(h, w[\"gate_proj\"]), linear(h, w[\"up_proj\"]))",
         "swiglu(linear(h, w[\"up_proj\"]), linear(h, w[\"gate_proj\"]))", "gate_proj and up_proj are exchanged"),
        ("one gain for both", "w[\"post_attention_layernorm\"]", "w[\"input_layernorm\"]",
         "gain of input_layernorm is used for both"),
        ("layer 0 always", "model.layers.{i}.", "model.layers.0.", "every layer has the weights of layer 0"),
        ("one layer", "range(config[\"num_hidden_layers\"])", "range(1)", "only layer 0 is computed"),
        ("parallel", None, """
def llama(ids, weights, config):
    H, eps, theta = config["num_attention_heads"], config["rms_norm_eps"], config["rope_theta"]
    x = weights["model.embed_tokens.weight"][ids]
    B, T, D = x.shape
    for i in range(config["num_hidden_layers"]):
        w = {name.split(".")[-2]: a for name, a in weights.items() if name.startswith(f"model.layers.{i}.")}
        h = rms_norm(x, w["input_layernorm"], eps)
        q, k, v = (linear(h, w[name]).reshape(B, T, H, -1).swapaxes(1, 2) for name in ("q_proj", "k_proj", "v_proj"))
        o = attention(rope(q, 0, theta), rope(k, 0, theta), v)
        h = rms_norm(x, w["post_attention_layernorm"], eps)
        x = x + linear(o.swapaxes(1, 2).reshape(B, T, D), w["o_proj"])
        x = x + linear(swiglu(linear(h, w["gate_proj"]), linear(h, w["up_proj"])), w["down_proj"])
    return linear(rms_norm(x, weights["model.norm.weight"], eps), weights["lm_head.weight"])
""", "the MLP gets the block's input"),
        ("post-norm", None, """
def llama(ids, weights, config):
    H, eps, theta = config["num_attention_heads"], config["rms_norm_eps"], config["rope_theta"]
    x = weights["model.embed_tokens.weight"][ids]
    B, T, D = x.shape
    for i in range(config["num_hidden_layers"]):
        w = {name.split(".")[-2]: a for name, a in weights.items() if name.startswith(f"model.layers.{i}.")}
        q, k, v = (linear(x, w[name]).reshape(B, T, H, -1).swapaxes(1, 2) for name in ("q_proj", "k_proj", "v_proj"))
        o = attention(rope(q, 0, theta), rope(k, 0, theta), v)
        x = rms_norm(x + linear(o.swapaxes(1, 2).reshape(B, T, D), w["o_proj"]), w["input_layernorm"], eps)
        m = linear(swiglu(linear(x, w["gate_proj"]), linear(x, w["up_proj"])), w["down_proj"])
        x = rms_norm(x + m, w["post_attention_layernorm"], eps)
    return linear(rms_norm(x, weights["model.norm.weight"], eps), weights["lm_head.weight"])
""", "the norms stand behind the sums"),
        ("head not transposed", "return linear(rms_norm(x, weights[\"model.norm.weight\"], eps), weights[\"lm_head.weight\"])",
         "return rms_norm(x, weights[\"model.norm.weight\"], eps) @ weights[\"lm_head.weight\"]", "matmul"),
        ("matrices not transposed", "(linear(h, w[name]).reshape", "((h @ w[name]).reshape",
         "q_proj, k_proj and v_proj are used as x @ W"),
        ("eps of its own", "config[\"rms_norm_eps\"]", "1e-6", "rms_norm_eps is not used (1e-6 is)"),
        ("theta of its own", "config[\"rope_theta\"]", "10000.0", "rope_theta is not used (10,000 is)"),
        ("embedding of the head", "weights[\"model.embed_tokens.weight\"][ids]", "weights[\"lm_head.weight\"][ids]",
         "rows of lm_head are taken"),
        ("softmax of the logits", "return linear(rms_norm(x, weights[\"model.norm.weight\"], eps), weights[\"lm_head.weight\"])",
         "z = linear(rms_norm(x, weights[\"model.norm.weight\"], eps), weights[\"lm_head.weight\"])\n"
         "    return np.exp(z) / np.exp(z).sum(-1, keepdims=True)", "these are probabilities, should be logits"),
        ("weights changed", "x = weights[\"model.embed_tokens.weight\"][ids]",
         "weights[\"lm_head.weight\"] *= 1.0000000001; x = weights[\"model.embed_tokens.weight\"][ids]",
         "was changed by the call"),
    ],
}

OTHERS = {
    "rms_norm": {
        "loop over tokens": """
def rms_norm(x, gain, eps):
    y = np.empty_like(x)
    for n in np.ndindex(x.shape[:-1]):
        y[n] = gain * x[n] / (sum(v * v for v in x[n]) / len(gain) + eps) ** 0.5
    return y
""",
        "einsum": """
def rms_norm(x, gain, eps):
    r = (np.einsum("...d,...d->...", x, x) / x.shape[-1] + eps) ** -0.5
    return np.einsum("...d,...,d->...d", x, r, gain)
""",
        "linalg.norm": """
def rms_norm(x, gain, eps):
    D = x.shape[-1]
    size = np.linalg.norm(x, axis=-1)[..., None]
    return x / np.hypot(size, np.sqrt(D * eps)) * np.sqrt(D) * gain
""",
        "apply_along_axis": """
def rms_norm(x, gain, eps):
    return np.apply_along_axis(lambda row: row * gain / np.sqrt(row.dot(row) / row.size + eps), -1, x)
""",
    },
    "rms_norm_backward": {
        "the formula, einsum": """
def rms_norm_backward(dy, x, gain, eps):
    D = x.shape[-1]
    r = (np.einsum("...d,...d->...", x, x) / D + eps) ** -0.5
    dx = r[..., None] * gain * dy - (r ** 3 * np.einsum("...d,...d,d->...", x, dy, gain) / D)[..., None] * x
    return dx, np.einsum("nd,nd,n->d", dy.reshape(-1, D), x.reshape(-1, D), r.ravel())
""",
        "the Jacobian of each token": """
def rms_norm_backward(dy, x, gain, eps):
    dx, dgain = np.zeros_like(x), np.zeros_like(gain)
    D = len(gain)
    for n in np.ndindex(x.shape[:-1]):
        r = 1 / np.sqrt(np.mean(x[n] ** 2) + eps)
        J = gain[:, None] * (r * np.eye(D) - r ** 3 / D * np.outer(x[n], x[n]))
        dx[n] = J.T @ dy[n]
        dgain += dy[n] * x[n] * r
    return dx, dgain
""",
        "step by step": """
def rms_norm_backward(dy, x, gain, eps):
    mean = np.mean(x ** 2, axis=-1, keepdims=True) + eps
    root = mean ** 0.5
    normed = x / root
    axes = tuple(range(dy.ndim - 1))
    dgain = np.sum(dy * normed, axis=axes)
    dnormed = dy * gain
    droot = -np.sum(dnormed * x, axis=-1, keepdims=True) / root ** 2
    dmean = droot / (2 * root)
    return dnormed / root + dmean * 2 * x / x.shape[-1], dgain
""",
    },
    "rope": {
        "complex numbers": """
def rope(x, start, theta):
    T, d = x.shape[-2:]
    z = x[..., :d // 2] + 1j * x[..., d // 2:]
    z = z * np.exp(1j * np.outer(np.arange(start, start + T), theta ** (-2 * np.arange(d // 2) / d)))
    return np.concatenate([z.real, z.imag], -1)
""",
        "rotate_half, as in Hugging Face's code": """
def rope(x, start, theta):
    T, d = x.shape[-2:]
    frequencies = 1.0 / (theta ** (np.arange(0, d, 2) / d))
    angle = np.einsum("t,i->ti", np.arange(T) + start, frequencies)
    angle = np.concatenate([angle, angle], axis=-1)
    half = np.concatenate([-x[..., d // 2:], x[..., :d // 2]], axis=-1)
    return x * np.cos(angle) + half * np.sin(angle)
""",
        "a rotation matrix for each position": """
def rope(x, start, theta):
    T, d = x.shape[-2:]
    y = np.empty_like(x)
    for t in range(T):
        R = np.zeros((d, d))
        for i in range(d // 2):
            a = (start + t) * np.exp(-2 * i / d * np.log(theta))
            R[i, i] = R[i + d // 2, i + d // 2] = np.cos(a)
            R[i + d // 2, i] = np.sin(a)
            R[i, i + d // 2] = -np.sin(a)
        y[:, :, t] = x[:, :, t] @ R.T
    return y
""",
    },
    "rope_backward": {
        "minus sin": """
def rope_backward(dy, start, theta):
    T, d = dy.shape[-2:]
    angle = np.arange(start, start + T)[:, None] * theta ** (-np.arange(0, d, 2) / d)
    a, b = np.split(dy, 2, axis=-1)
    return np.concatenate([a * np.cos(angle) + b * np.sin(angle), b * np.cos(angle) - a * np.sin(angle)], axis=-1)
""",
        "conjugate": """
def rope_backward(dy, start, theta):
    T, d = dy.shape[-2:]
    z = dy[..., :d // 2] + 1j * dy[..., d // 2:]
    z *= np.exp(-1j * np.outer(start + np.arange(T), theta ** (-2 * np.arange(d // 2) / d)))
    return np.concatenate([z.real, z.imag], -1)
""",
        "the transposed matrix, from rope of unit vectors": """
def rope_backward(dy, start, theta):
    B, H, T, d = dy.shape
    unit = np.broadcast_to(np.eye(d)[:, None, None], (d, 1, T, d))
    R = rope(unit, start, theta)[:, 0]  # (i, t, j): entry j of R_t e_i
    return np.einsum("itj,bhtj->bhti", R, dy)
""",
        "each position at -t by rope": """
def rope_backward(dy, start, theta):
    parts = [rope(dy[:, :, t:t + 1], -start - t, theta) for t in range(dy.shape[2])]
    return np.concatenate(parts, axis=2)
""",
    },
    "attention": {
        "loops": """
def attention(q, k, v):
    out = np.zeros_like(v)
    B, H, T, d = q.shape
    for b, h, i in np.ndindex(B, H, T):
        s = k[b, h, :i + 1] @ q[b, h, i] / d ** 0.5
        e = np.exp(s - s.max())
        out[b, h, i] = e @ v[b, h, :i + 1] / e.sum()
    return out
""",
        "einsum, a large negative number added": """
def attention(q, k, v):
    T, d = q.shape[2:]
    s = np.einsum("bhid,bhjd->bhij", q, k) * d ** -0.5
    s = s + np.triu(np.full((T, T), -1e30), 1)
    s = s - s.max(axis=3)[..., None]
    p = np.exp(s)
    return np.einsum("bhij,bhjd->bhid", p, v) / p.sum(axis=3)[..., None]
""",
        "scipy's softmax": """
def attention(q, k, v):
    from scipy.special import softmax

    s = np.matmul(q, np.transpose(k, (0, 1, 3, 2))) / np.sqrt(q.shape[-1])
    future = np.triu(np.ones(s.shape[-2:], bool), k=1)
    s[..., future] = -np.inf
    return softmax(s, axis=-1) @ v
""",
        "online, a key at a time": """
def attention(q, k, v):
    T, d = q.shape[2:]
    top, total, out = np.full(q.shape[:3], -np.inf), np.zeros(q.shape[:3]), np.zeros(v.shape)
    for j in range(T):
        s = (q[:, :, j:] * k[:, :, j:j + 1]).sum(-1) / np.sqrt(d)
        new = np.maximum(top[:, :, j:], s)
        shrink, e = np.exp(top[:, :, j:] - new), np.exp(s - new)
        total[:, :, j:] = total[:, :, j:] * shrink + e
        out[:, :, j:] = out[:, :, j:] * shrink[..., None] + e[..., None] * v[:, :, j:j + 1]
        top[:, :, j:] = new
    return out / total[..., None]
""",
    },
    "attention_backward": {
        "loops": """
def attention_backward(do, q, k, v):
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    B, H, T, d = q.shape
    for b, h, i in np.ndindex(B, H, T):
        seen = slice(0, i + 1)
        s = k[b, h, seen] @ q[b, h, i] / d ** 0.5
        p = np.exp(s - s.max())
        p /= p.sum()
        dp = v[b, h, seen] @ do[b, h, i]
        ds = p * (dp - p @ dp) / d ** 0.5
        dv[b, h, seen] += np.outer(p, do[b, h, i])
        dq[b, h, i] = ds @ k[b, h, seen]
        dk[b, h, seen] += np.outer(ds, q[b, h, i])
    return dq, dk, dv
""",
        "do . o, einsum, attention used": """
def attention_backward(do, q, k, v):
    T, d = q.shape[-2:]
    p = attention(q, k, np.broadcast_to(np.eye(T), (*q.shape[:2], T, T)))
    delta = np.einsum("bhid,bhid->bhi", do, attention(q, k, v))
    ds = p * (np.einsum("bhid,bhjd->bhij", do, v) - delta[..., None])
    return [np.einsum("bhij,bhjd->bhid", ds, k) * d ** -0.5, np.einsum("bhij,bhid->bhjd", ds, q) * d ** -0.5,
            np.einsum("bhij,bhid->bhjd", p, do)]
""",
        "the softmax's Jacobian": """
def attention_backward(do, q, k, v):
    from scipy.special import softmax

    T, d = q.shape[-2:]
    s = q @ k.swapaxes(-1, -2) / np.sqrt(d) + np.triu(np.full((T, T), -np.inf), 1)
    p = softmax(s, axis=-1)
    J = np.einsum("...i,ij->...ij", p, np.eye(T)) - p[..., :, None] * p[..., None, :]
    dp = do @ v.swapaxes(-1, -2)
    ds = (J @ dp[..., None])[..., 0]
    return ds @ (k / np.sqrt(d)), ds.swapaxes(-1, -2) @ (q / np.sqrt(d)), p.swapaxes(-1, -2) @ do
""",
    },
    "cross_entropy": {
        "loops": """
def cross_entropy(logits, labels):
    total, count = 0.0, 0
    for n in np.ndindex(labels.shape):
        if labels[n] != -100:
            z = logits[n] - logits[n].max()
            total += np.log(sum(np.exp(z))) - z[labels[n]]
            count += 1
    return total / count
""",
        "scipy": """
def cross_entropy(logits, labels):
    from scipy.special import log_softmax

    log_p = log_softmax(logits, axis=-1).reshape(-1, logits.shape[-1])
    flat = labels.ravel()
    rows = np.flatnonzero(flat != -100)
    return float(-log_p[rows, flat[rows]].sum() / len(rows))
""",
        "logaddexp, take_along_axis, a mask": """
def cross_entropy(logits, labels):
    keep = (labels != -100)
    right = np.take_along_axis(logits, np.where(keep, labels, 0)[..., None], axis=-1)[..., 0]
    loss = np.logaddexp.reduce(logits, axis=-1) - right
    return np.sum(loss * keep) / np.sum(keep)
""",
        "differences of logits": """
def cross_entropy(logits, labels):
    keep = labels != -100
    z, c = logits[keep], labels[keep]
    away = z - z[np.arange(len(c)), c][:, None]
    top = away.max(1)
    return np.average(top + np.log(np.exp(away - top[:, None]).sum(1)))
""",
    },
    "cross_entropy_backward": {
        "loops": """
def cross_entropy_backward(logits, labels):
    dz, count = np.zeros_like(logits), sum(label != -100 for label in labels.ravel())
    for n in np.ndindex(labels.shape):
        if labels[n] == -100:
            continue
        e = np.exp(logits[n] - max(logits[n]))
        for w in range(len(e)):
            dz[n][w] = (e[w] / e.sum() - (w == labels[n])) / count
    return dz
""",
        "one-hot, a mask": """
def cross_entropy_backward(logits, labels):
    from scipy.special import softmax

    mask = (labels != -100)[..., None]
    onehot = labels[..., None] == np.arange(logits.shape[-1])
    return (softmax(logits, axis=-1) - onehot) * mask / mask.sum()
""",
        "rows of the identity": """
def cross_entropy_backward(logits, labels):
    V = logits.shape[-1]
    z, flat = logits.reshape(-1, V), labels.reshape(-1)
    p = np.exp(z - np.logaddexp.reduce(z, axis=1, keepdims=True))
    weight = np.where(flat == -100, 0.0, 1 / np.count_nonzero(flat != -100))
    return ((p - np.eye(V)[np.where(flat == -100, 0, flat)]) * weight[:, None]).reshape(logits.shape)
""",
    },
    "llama": {
        "einsum over heads": """
def llama(ids, weights, config):
    def get(i, name):
        return weights[f"model.layers.{i}.{name}.weight"]

    H, eps = config["num_attention_heads"], config["rms_norm_eps"]
    x = np.take(weights["model.embed_tokens.weight"], ids, axis=0)
    D = x.shape[-1]
    for i in range(config["num_hidden_layers"]):
        h = rms_norm(x, get(i, "input_layernorm"), eps)
        q, k, v = (np.einsum("btc,hdc->bhtd", h, get(i, f"self_attn.{n}_proj").reshape(H, D // H, D)) for n in "qkv")
        o = attention(rope(q, 0, config["rope_theta"]), rope(k, 0, config["rope_theta"]), v)
        x = x + np.einsum("bhtd,chd->btc", o, get(i, "self_attn.o_proj").reshape(D, H, D // H))
        m = rms_norm(x, get(i, "post_attention_layernorm"), eps)
        x = x + linear(swiglu(linear(m, get(i, "mlp.gate_proj")), linear(m, get(i, "mlp.up_proj"))), get(i, "mlp.down_proj"))
    return np.einsum("btd,vd->btv", rms_norm(x, weights["model.norm.weight"], eps), weights["lm_head.weight"])
""",
        "a head at a time, one-hot embedding": """
def llama(ids, weights, config):
    H, eps, theta = config["num_attention_heads"], config["rms_norm_eps"], config["rope_theta"]
    E = weights["model.embed_tokens.weight"]
    x = np.eye(len(E))[ids] @ E
    d = x.shape[-1] // H
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        h = rms_norm(x, weights[p + "input_layernorm.weight"], eps)
        q, k, v = (h @ weights[p + f"self_attn.{n}_proj.weight"].T for n in "qkv")
        heads = []
        for a in range(H):
            own = slice(a * d, (a + 1) * d)
            turned = [rope(y[:, None, :, own], 0, theta) for y in (q, k)]
            heads.append(attention(*turned, v[:, None, :, own])[:, 0])
        x = x + np.concatenate(heads, axis=-1) @ weights[p + "self_attn.o_proj.weight"].T
        h = rms_norm(x, weights[p + "post_attention_layernorm.weight"], eps)
        gate, up = (h @ weights[p + f"mlp.{n}_proj.weight"].T for n in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ weights[p + "mlp.down_proj.weight"].T
    return rms_norm(x, weights["model.norm.weight"], eps) @ weights["lm_head.weight"].T
""",
        "a sequence at a time, recursion over the layers": """
def llama(ids, weights, config):
    H, eps, theta = config["num_attention_heads"], config["rms_norm_eps"], config["rope_theta"]

    def after(layers, x):
        if layers == 0:
            return x
        x = after(layers - 1, x)
        w = lambda name: weights[f"model.layers.{layers - 1}.{name}.weight"]
        h = rms_norm(x, w("input_layernorm"), eps)
        q, k, v = (np.stack(np.split(linear(h, w(f"self_attn.{n}_proj")), H, axis=-1))[None] for n in "qkv")
        o = attention(rope(q, 0, theta), rope(k, 0, theta), v)[0]
        x = x + linear(np.concatenate(list(o), axis=-1), w("self_attn.o_proj"))
        h = rms_norm(x, w("post_attention_layernorm"), eps)
        return x + linear(swiglu(linear(h, w("mlp.gate_proj")), linear(h, w("mlp.up_proj"))), w("mlp.down_proj"))

    last = [after(config["num_hidden_layers"], weights["model.embed_tokens.weight"][row]) for row in ids]
    return np.stack([linear(rms_norm(x, weights["model.norm.weight"], eps), weights["lm_head.weight"]) for x in last])
""",
    },
}

"""Orthogonalisation: of G = U diag(s) V^T keep the directions and make every singular value 1, by matrix products alone.

    newton_schulz    U f(s) V^T                            quick and rough: f is about 1, and no nearer with more steps; Muon
    whiten           (G G^T)^(-1/2) G, which is U V^T      rough as well, of weaker directions too; SWAN
    polar            U V^T                                 converges; PolarGrad

A tall G is turned, so that the products are of as many rows as the shorter side has.
"""


from minisl.backend import array_module, matmul


def newton_schulz(G, steps=5):
    """X <- a X + b (X X^T) X + c (X X^T)^2 X from X = G / |G|_F: each singular value goes s <- a s + b s^3 + c s^5.

    The coefficients (Jordan et al. 2024) are chosen for speed: 0 is left at a slope of 3.44, and no value comes to rest at 1.
    After 5 steps all s above 0.0016 |G|_F are in 0.68 .. 1.21, those below still on their way; none is above 1.21.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    X = unit(wide(G))
    for _ in range(steps):
        A = matmul(X, X.T)
        X = a * X + matmul(b * A + c * matmul(A, A), X)
    return turned_as(G, X)


def whiten(G, steps=10, beta=0.8):
    """The coupled iteration: Y towards (X X^T)^(1/2), Z towards its inverse, X = G / |G|_F. Returns Z X.

    Y_0 = X X^T, Z_0 = I        T = beta (3 I - Z Y),  Y <- Y T,  Z <- T Z

    A small singular value grows 3 beta-fold a step. With beta = 1/2 the large ones come to rest at 1. With 0.8 they do not: after
    ten steps all above 1e-4 |G|_F are in 0.56 .. 1.6, and jump about there, as rounding errors grow. Both need X: eigenvalues of
    G G^T itself, above 5, would run off to NaN.
    """
    X = unit(wide(G))
    Y = X @ X.T
    Z = I = array_module(X).eye(len(Y), dtype=Y.dtype)
    for _ in range(steps):
        T = beta * (3 * I - Z @ Y)
        Y, Z = Y @ T, T @ Z
    return turned_as(G, Z @ X)


def polar(G):
    """Ten steps of `newton_schulz` bring all s above 3e-6 |G|_F near 1, six of s <- (3 s - s^3) / 2 from there to 1 itself."""
    X = wide(newton_schulz(G, 10))
    for _ in range(6):
        X = 1.5 * X - 0.5 * matmul(matmul(X, X.T), X)
    return turned_as(G, X)


def unit(G):
    """G / |G|_F, or 0 if G is."""
    return G / (norm(G) + 1e-7)


def norm(G):
    """|G|_F"""
    return array_module(G).sqrt((G * G).sum())


def wide(G):
    """G or G^T, with no more rows than columns."""
    return G.T if G.shape[0] > G.shape[1] else G


def turned_as(G, X):
    """X or X^T, of G's shape."""
    return X if X.shape == G.shape else X.T

"""Compare an answer with the right one, and say what is wrong with it in the words of who wrote it."""

import itertools

import numpy as np

WRITTEN = []  # arrays into which an answer wrote, in a process of its own (border.py)


class Wrong(AssertionError):
    """An answer is wrong. Its text says how."""

    def _render_traceback_(self):
        """What Jupyter shows: the words alone, not the way to them."""
        return [f"Wrong: {self}"]


def check(what, got, want, rtol=1e-9, atol=None, wrong=None):
    """Raise Wrong unless `got` is `want`: shape, kind of number, and every value within rtol |want| + atol.

    what   the answer's name for its author, such as "dx" or "loss (B = 2, T = 5)"; of a tuple also "(dx, dW) of linear"
    want   array, number, or a tuple, list or dict of these
    atol   by default rtol times the largest |want|
    wrong  {"alpha / r is missing": array, ...}: known mistakes; one that gives `got` is named. For a tuple: {place: such a dict}

    What is looked for is what people do: nothing returned, wrong shape (transposed, an axis kept or lost), wrong kind of number,
    NaN, all zero, the sign, a factor, entries in another order, a row or column that is off by a constant, one wrong entry.
    """
    if isinstance(want, dict):
        return check_dict(what, got, want, rtol, atol, wrong)
    if isinstance(want, (tuple, list)):
        return check_sequence(what, got, want, rtol, atol, wrong)
    if isinstance(want, str):
        return say(got == want, f"{what} is {got!r}, should be {want!r}")
    say(got is not None, f"{what} is None: does the function return it?")
    want = np.asarray(want)
    try:
        got = np.asarray(got)
    except ValueError:
        raise Wrong(f"{what} is a list of unequal rows, should be an array of shape {want.shape}") from None
    say(got.dtype.kind in "biufc", f"{what} is {article(got.dtype)}, should be numbers of type {want.dtype}")
    say(got.shape == want.shape, lambda: shape_of(what, got, want))
    if want.dtype.kind in "iub":
        say(got.dtype.kind in "iub" or got.ndim, f"{what} is {got}, a float; should be an int")
        say(got.dtype.kind in "iub", f"{what} has type {got.dtype}, should have {want.dtype}")
    if got.dtype != want.dtype and want.ndim and want.dtype.kind == "f":
        say(got.dtype.kind == "f", f"{what} has type {got.dtype}, should have {want.dtype}")
    if not want.size:
        return None
    exact = want.dtype.kind in "iub"
    got64, want64 = got.astype(np.float64), want.astype(np.float64)
    slack = 0 if exact else rtol * largest(want64) if atol is None else atol
    if close(got64, want64, 0 if exact else rtol, slack):
        return None
    raise Wrong(f"{what} {diagnosis(got64, want64, max(rtol, 1e-12), slack, wrong or {}, exact)}")


def raises(error, function, *args, when):
    """Raise Wrong unless function(*args) raises `error`; when: for what, in words, such as "an axis that is not there"."""
    try:
        function(*args)
    except error as found:
        say(type(found) is not NotImplementedError or error is NotImplementedError, "not written yet")
        return
    except NotImplementedError:
        raise
    except Exception as other:
        raise Wrong(f"{name_of(function)} raises {type(other).__name__} for {when}, should raise {error.__name__}") from other
    raise Wrong(f"{name_of(function)} accepts {when}, should raise {error.__name__}")


def unchanged(what, now, before):
    """Raise Wrong if an argument is no longer what it was."""
    same = np.array_equal(now, before) and not any(np.may_share_memory(now, array) for array in WRITTEN)
    say(same, f"{what} was changed by the call: make a new array, do not write into what you were given")


def say(fine, message):
    """Raise Wrong with a message, a text or a function that makes it, unless all is fine."""
    if not fine:
        raise Wrong(message() if callable(message) else message)


def name_of(function):
    """What a function is called by its author."""
    return getattr(function, "__name__", "the function")


def check_dict(what, got, want, rtol, atol, wrong):
    """`check` for a dict: its keys, then each value."""
    keys = ", ".join(map(repr, want))
    say(isinstance(got, dict), f"{what} is {article(type(got).__name__)}, should be a dict with the keys {keys}")
    say(not want.keys() - got.keys(), lambda: f"{what} has no {', '.join(repr(key) for key in want if key not in got)}")
    say(not got.keys() - want.keys(), lambda: f"{what} has {', '.join(repr(key) for key in got if key not in want)} too many")
    for key in want:
        check(f"{what}[{key!r}]", got[key], want[key], rtol, atol, (wrong or {}).get(key))


def check_sequence(what, got, want, rtol, atol, wrong):
    """`check` for a tuple or list: its length, then each part."""
    names, short = names_of_parts(what, len(want)), names_of_parts(what.partition(")")[0] + ")", len(want))
    say(got is not None, f"{what} is None: does the function return it?")
    kind = "an array" if isinstance(got, np.ndarray) else article(type(got).__name__)
    say(isinstance(got, (tuple, list)), f"{what} is {kind}, should be a {type(want).__name__} of {len(want)}")
    say(len(got) == len(want), f"{what} has {len(got)} parts, should have {len(want)}")
    if moved := permuted(got, want):
        raise Wrong(f"{what}: {' and '.join(short[k] for k in moved)} are exchanged" if len(moved) == 2 else
                    f"{what}: the order is wrong, should be ({', '.join(short)})")
    for k, (name, mine, right) in enumerate(zip(names, got, want)):
        check(name, mine, right, rtol, atol, (wrong or {}).get(k))


def permuted(got, want):
    """The places of arrays that are right but in another order, [] where there are none. For a few arrays."""
    def same(order):
        return all(np.shape(got[k]) == right.shape and np.allclose(got[k], right, rtol=1e-6) for k, right in zip(order, want))

    if len(want) > 4 or not all(isinstance(part, np.ndarray) and part.dtype.kind in "biuf" for part in (*got, *want)):
        return []
    orders = list(itertools.permutations(range(len(want))))
    right = next(filter(same, orders), orders[0])
    return [k for k, place in enumerate(right) if place != k]


def names_of_parts(what, count):
    """"(dx, dy) of f" is "dx of f" and "dy of f"; "pair" is "pair[0]" and "pair[1]"."""
    names = what[1:].split(")")[0].split(", ") if what.startswith("(") else []
    rest = what.partition(")")[2]
    return [name + rest for name in names] if len(names) == count else [f"{what}[{k}]" for k in range(count)]


def article(kind):
    """A kind of thing in words: "an int64", "a tuple"."""
    kind = {"object": "an array of Python objects", "NoneType": "None"}.get(str(kind), str(kind))
    return kind if kind.startswith(("an ", "None")) else f"{'an' if kind[0] in 'aeio' else 'a'} {kind}"


def shape_of(what, got, want):
    """That the shape is wrong, and how: transposed, an axis too few or too many, which axis."""
    text = f"{what} has shape {got.shape}, should have {want.shape}"
    if got.shape == want.shape[::-1]:
        return text + ": transposed?"
    if got.size == want.size and [n for n in got.shape if n != 1] == [n for n in want.shape if n != 1]:
        if got.shape and got.ndim == want.ndim - 1:
            return text + ": an axis of length 1 was dropped (keepdims?)"
        if got.ndim == want.ndim + 1:
            return text + ": an axis of length 1 too many (keepdims?)"
    elif got.size == want.size and got.ndim != want.ndim:
        return text + ": as many numbers, in other axes (reshape? stacked, not concatenated?)"
    if got.ndim == 0:
        return text + ": summed over every axis?"
    if got.ndim < want.ndim:
        return text + f": {axes(want.ndim - got.ndim)} fewer: summed over one too many, or not put back?"
    if got.ndim > want.ndim:
        return text + f": {axes(got.ndim - want.ndim)} more (a sum over it is missing?)"
    differ = [axis for axis in range(want.ndim) if got.shape[axis] != want.shape[axis]]
    return text + f": look at axis {', '.join(map(str, differ))}"


def axes(count):
    """So many axes in words."""
    return f"{count} {'axis' if count == 1 else 'axes'}"


def largest(x):
    """The largest absolute value that is a number."""
    return float(np.abs(x[np.isfinite(x)]).max(initial=0))


def close(a, b, rtol, atol):
    """Whether all values agree; NaN agrees with NaN."""
    return np.allclose(a, b, rtol=rtol, atol=atol, equal_nan=True)


def diagnosis(got, want, rtol, atol, wrong, exact):
    """What is wrong with the values, the most telling first."""
    loose = {"rtol": max(rtol, 1e-6), "atol": max(atol, 1e-6 * largest(want))}
    for mistake, values in wrong.items():
        if np.shape(values) == got.shape and close(got, np.asarray(values, np.float64), **loose):
            return f"is wrong: {mistake}"
    bad = ~np.isclose(got, want, rtol=rtol, atol=atol, equal_nan=True)
    if (lost := np.isnan(got) & ~np.isnan(want)).any():
        return f"is NaN {places(lost)}"
    if (lost := np.isinf(got) & ~np.isinf(want)).any():
        return f"is infinite {places(lost)}"
    if not got.any():
        return f"is 0, should be {want.item():.6g}" if want.ndim == 0 else "is zero everywhere"
    if close(got, -want, **loose):
        return "has the wrong sign"
    if not exact and (factor := ratio(got, want, **loose)) is not None:
        return f"is {factor:.6g} times what it should be, everywhere: a factor is {'missing or ' * (factor != 1)}wrong"
    if want.ndim == 2 and want.shape[0] == want.shape[1] and close(got, want.T, **loose):
        return "is transposed"
    for axis in range(want.ndim):
        if want.shape[axis] > 1 and close(np.flip(got, axis), want, **loose):
            return f"is in reverse order along axis {axis}"
    if want.size > 1 and close(np.sort(got, None), np.sort(want, None), **loose):
        return f"has the right values in the wrong places: wrong {places(bad, got, want)}"
    if want.size > 1 and (text := along_an_axis(got, want, exact, loose)):
        return text
    return f"is wrong {places(bad, got, want)}"


def ratio(got, want, rtol, atol):
    """The one number that all entries are too large by, or None."""
    scale = float((got * want).sum() / (want * want).sum()) if want.any() else 0.0
    other = scale and abs(scale - 1) > 1e-9 and want.size > 1
    return scale if other and close(got, scale * want, rtol, abs(scale) * atol) else None


def along_an_axis(got, want, exact, loose):
    """An offset or a factor that is constant along one axis: a mean, a norm, a sum over the wrong axis."""
    for axis in range(want.ndim):
        if want.shape[axis] == 1 or (want.shape[axis] == 2 and want.ndim > 1):
            continue
        off = got - want
        if close(off, off.mean(axis, keepdims=True) + 0 * off, **loose):
            constant = "by the same amount everywhere" if want.ndim == 1 else f"by an amount that is the same along axis {axis}"
            return f"is off {constant} ({off.flat[0]:.4g} at first): something is added, or not subtracted"
        if not exact and want.ndim > 1 and (want != 0).all():
            factor = got / want
            if close(factor, factor.mean(axis, keepdims=True) + 0 * factor, 1e-6, 1e-6):
                return (f"is off by a factor that is the same along axis {axis} ({factor.flat[0]:.4g} at first): "
                        "a norm, a sum or a mean over the wrong axis?")
    return ""


def places(bad, got=None, want=None):
    """Where, in words: "at [1, 2] (0.5, should be 2) and 3 more of 24 places", and whether whole rows are."""
    if bad.ndim == 0:
        return f"({got.item():.6g}, should be {want.item():.6g})" if got is not None else ""
    first = tuple(int(i) for i in np.argwhere(bad)[0])
    values = f" ({got[first]:.6g}, should be {want[first]:.6g})" if got is not None else ""
    count = int(bad.sum())
    if count == bad.size:
        return f"everywhere, first at {list(first)}{values}"
    for axis in range(bad.ndim):
        others = tuple(k for k in range(bad.ndim) if k != axis)
        along = bad.any(others)
        if others and not along.all() and np.array_equal(bad, np.broadcast_to(np.expand_dims(along, others), bad.shape)):
            which = ", ".join(map(str, np.flatnonzero(along)[:6])) + ", ..." * int(along.sum() > 6)
            return f"wherever the index of axis {axis} is {which}; first at {list(first)}{values}"
    return f"at {list(first)}{values}" + f" and {count - 1} more of {bad.size} places" * (count > 1)

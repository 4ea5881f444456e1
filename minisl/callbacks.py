"""temporary"""


def tell(callbacks, what, *values):
    for c in callbacks:
        if hasattr(c, what):
            getattr(c, what)(*values)

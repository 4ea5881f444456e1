"""What students write for a1: MISTAKES that must be named, and OTHERS that are right, by task.

A mistake: (what it is, text of the solution, what stands there instead, words the message must have). With None for the text, the
third is the whole cell. An other: {name: the whole cell}.
"""

MISTAKES = {
    "unbroadcast": [
        ("the new axes are kept", "grad = grad.sum(axis=tuple(range(grad.ndim - len(shape))))", "", "shape"),
        ("mean, not sum", "return grad.sum(axis=stretched", "return grad.mean(axis=stretched", "times what it should be"),
    ],
}

OTHERS = {
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
    },
}

"""The two exceptions whose text is meant for a person, as one line."""


class InputError(ValueError):
    """What was given cannot be used. Its text says what, where, and what is allowed."""


class TrainingError(RuntimeError):
    """Training cannot go on: the loss is no number, or nothing can be saved. Its text says at which step, and what is kept."""

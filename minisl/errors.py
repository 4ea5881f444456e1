"""The exceptions whose text is meant for a person, as one line."""


class InputError(ValueError):
    """What was given cannot be used. Its text says what, where, and what is allowed."""


class TrainingError(RuntimeError):
    """Training cannot go on: the loss is no number, or the last checkpoint could not be saved. Its text says at which step, and
    what is kept."""


class NotSavedError(TrainingError):
    """Training went well, and its last checkpoint could not be saved."""

"""The one exception for what a person typed or handed over."""


class InputError(ValueError):
    """What was given cannot be used. Its text is the single line shown: what, where, what is allowed."""

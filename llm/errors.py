"""The one exception that means: the input is wrong, and here is where."""


class InputError(ValueError):
    """Bad input. The message names the bad value and its place; the command line exits with 2."""

"""Errors that end a command with one line instead of a traceback."""


class ConfigError(ValueError):
    """Invalid recipe, data or file of the user.

    The message names the thing, its value, the rule and the remedy in one line. Commands print it and exit with code 2.
    """


class TrainingFault(RuntimeError):
    """Training that cannot continue.

    The message says what happened and what may help in one line. Commands print it and exit with code 1.
    """

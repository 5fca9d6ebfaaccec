"""Exceptions that commands report in one line without a traceback."""


class ConfigError(ValueError):
    """Invalid recipe, data or file.

    The message names the key or file, the rule, the value and the remedy in one line. Commands print it and exit with
    code 2.
    """


class TrainingFault(RuntimeError):
    """Failure that prevents training from continuing.

    The message describes the failure and a remedy in one line. Commands print it and exit with code 1.
    """

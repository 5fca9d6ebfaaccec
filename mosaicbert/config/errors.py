"""What stops a command: the user's recipe, data or files, or a training that cannot go on."""


class ConfigError(ValueError):
    """Something the user wrote or pointed at cannot work.

    The message names the thing, its value, the rule and the remedy in one line; commands print it and exit with code 2.
    """


class TrainingFault(RuntimeError):
    """A run cannot go on by itself.

    The message says what happened and what may help in one line; commands print it and exit with code 1.
    """

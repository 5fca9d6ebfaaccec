"""The error of a user's recipe, data or files."""


class ConfigError(ValueError):
    """Something the user wrote or pointed at cannot work.

    The message names the thing, its value, the rule and the remedy in one line; commands print it and exit with code 2.
    """

"""The one exception that stands for a user's mistake."""


class UserError(Exception):
    """One line that says what is wrong and what to do; entry points print it without a traceback and exit with 2."""

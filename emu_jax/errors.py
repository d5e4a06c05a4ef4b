"""The one error that is the user's to mend."""


class UserError(Exception):
    """Bad input. The message is one clear line that says what to do next; commands print it and exit with code 2."""

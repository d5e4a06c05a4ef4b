"""The error for mistakes that the user can fix."""


class UserError(ValueError):
    """A mistake of the user's; the message says what is wrong and what to do, and commands print it as one line.

    Attributes:
      exit_code: of the command.
    """

    exit_code = 2

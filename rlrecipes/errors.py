"""The one exception that the command line shows to a person."""


class UserError(Exception):
    """Something the user can mend, in one sentence: what is wrong, where, and what to do.

    The command line prints it after `error: ` on standard error and exits with status 2.
    """

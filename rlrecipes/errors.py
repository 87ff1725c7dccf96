"""The one exception that the command line shows to a person, and what it quotes of others."""


class UserError(Exception):
    """Something the user can mend, in one sentence: what is wrong, where, and what to do.

    The command line prints it after `error: ` on standard error and exits with status 2.
    """


def first_line(error: Exception) -> str:
    """What an error of a library says, for a sentence: its first line, or its name where it says nothing."""
    said = f"no {error}" if isinstance(error, KeyError) else str(error)  # of which the key is all it says
    return (said.strip().splitlines() or [type(error).__name__])[0].rstrip(".: ")

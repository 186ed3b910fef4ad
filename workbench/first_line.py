"""What an error says, as part of a sentence."""


def first_line(error: BaseException) -> str:
    """The first line of its message; of an error that says nothing, the name of its kind."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)

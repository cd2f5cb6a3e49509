"""The exception for errors that the user can fix."""


class UserError(ValueError):
    """An error that the user can fix: a missing file, a wrong key, an unreadable image.

    The message is a single line that names the file or key and the fix. The command line prints it without a
    traceback and exits with status 2; as a library it is an ordinary ``ValueError``.
    """

    def __init__(self, message: object = "") -> None:
        """`message` is made one printable line, since it may quote line breaks, control codes or lone surrogates."""
        super().__init__(printable_line(str(message)))


class UserTypeError(UserError, TypeError):
    """An argument that a function does not have; also a `TypeError`, as Python itself would raise."""


def printable_line(text: str) -> str:
    """`text` on one line, with control codes escaped."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)

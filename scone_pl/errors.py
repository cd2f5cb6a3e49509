"""The one exception that is meant for the person at the keyboard."""


class UserError(ValueError):
    """Something the user can put right: a missing file, a wrong key, an unreadable image.

    The message is a single line that names the file or key and the fix. The command line prints it without a
    traceback and exits with status 2; as a library it is an ordinary ``ValueError``.
    """

    def __init__(self, message: object = "") -> None:
        """Makes one printable line of `message`: what it quotes may hold line breaks, control codes, half an emoji."""
        super().__init__(printable_line(str(message)))


def printable_line(text: str) -> str:
    """`text` on one line, with escapes in place of control codes."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)

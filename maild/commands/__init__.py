"""What each subcommand does, one module each; `cli` imports the one that is asked for."""


def printable(text: str) -> str:
    """A server's words may be in it: nothing in them may move the cursor or colour the terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)

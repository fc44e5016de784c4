"""Texts of models in a terminal."""


def plain(text: str) -> str:
    """A text whose only control characters are line ends: a terminal would obey the others."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)

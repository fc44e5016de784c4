"""The text of an answer as its tokens come: whole characters only, and nothing of what a stop string cuts off."""

from collections.abc import Callable, Sequence

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer shows for bytes that are no whole character yet


class Writer:
    """Turns the tokens of one answer into text.

    Args:
        decode: tokens to text, without special tokens. stop: texts before which the answer ends.

    Attributes:
        text: what has been said and may be told. stopped: a stop string has come; nothing is said after it.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str]):
        self.decode, self.stop = decode, stop
        self.tokens: list[int] = []
        self.text, self.stopped = "", False
        self._held = ""  # may be the beginning of a stop string
        # Tokens are decoded from `_start`, a little before the new ones: many tokenizers write a word's space only where another precedes it.
        self._start = self._read = 0

    def add(self, token: int) -> str:
        """One more token; the new text that may be told."""
        if self.stopped:
            return ""
        self.tokens.append(token)
        before = self.decode(self.tokens[self._start : self._read])
        now = self.decode(self.tokens[self._start :])
        if now.endswith(UNFINISHED) or len(now) <= len(before):
            return ""
        self._start, self._read = self._read, len(self.tokens)
        return self._told(now[len(before) :], False)

    def end(self) -> str:
        """The answer has ended: what is left of its text."""
        if self.stopped:
            return ""
        whole, so_far = self.decode(self.tokens), self.text + self._held
        return self._told(whole[len(so_far) :] if whole.startswith(so_far) else "", True)

    def _told(self, new: str, last: bool) -> str:
        pending, self._held = self._held + new, ""
        found = [at for s in self.stop if (at := pending.find(s)) >= 0]
        if found:
            self.stopped, pending = True, pending[: min(found)]
        elif self.stop and not last:
            longest = min(len(pending), max(map(len, self.stop)) - 1)
            held = next((k for k in range(longest, 0, -1) if any(s.startswith(pending[-k:]) for s in self.stop)), 0)
            pending, self._held = pending[: len(pending) - held], pending[len(pending) - held :]
        self.text += pending
        return pending

"""From token bytes to text: characters that span tokens, and stop strings."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from streamsink.errors import UsageError, setting
from streamsink.system import checked


class TextStream:
    """Turns the bytes of successive tokens into whole characters and looks for stop strings.

    Text that may be the beginning of a stop string is held back until the next tokens decide.

    Parameters
    ----------
    stop : sequence of str
        Strings that end the text; none of them is ever part of it.

    Attributes
    ----------
    stopped : bool
        Whether a stop string was met.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        if isinstance(stop, str) or not isinstance(stop, Iterable):
            stop = (stop,)
        stop = tuple(checked.text("stop", one) for one in stop)
        if not all(stop):
            raise UsageError(f"an empty {setting('stop')} would end every text at once")
        self.stopped = False
        self._stop = stop
        self._held = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, piece: bytes, *, final: bool = False, goes_on: bool = False) -> str:
        """Take in the bytes of a token, give back the text that is now certain.

        With ``final`` everything held back is given out; a broken character becomes U+FFFD, unless
        the text ``goes_on`` elsewhere: then it is left to that (`open_bytes`).
        """
        if self.stopped:
            return ""
        text = self._decoder.decode(piece, final and not goes_on)
        if not self._stop:
            return text
        self._held += text
        cuts = [at for at in map(self._held.find, self._stop) if at >= 0]
        if cuts:
            self.stopped = True
            text, self._held = self._held[: min(cuts)], ""
            return text
        certain = len(self._held) if final else len(self._held) - self._n_open()
        text, self._held = self._held[:certain], self._held[certain:]
        return text

    def _n_open(self) -> int:
        """Length of the longest end of the held text with which a stop string begins."""
        longest = max(map(len, self._stop)) - 1
        for n in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-n:]) for stop in self._stop):
                return n
        return 0


def open_bytes(data: bytes) -> bytes:
    """The bytes at the end of some with which a character of UTF-8 has only begun."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    return decoder.getstate()[0]

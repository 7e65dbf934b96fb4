"""Values of options: of the right type and in range, or refused with the option's name."""

from __future__ import annotations

import math
import numbers
import operator

from streamsink.errors import UsageError, setting

MOST_SHOWN = 60


def whole(name: str, value: object, least: int, most: int, possible: str = "a whole number") -> int:
    """Return a value that is a whole number, NumPy's included; neither a bool nor a float.

    Parameters
    ----------
    option : str
        Its name on the command line, without dashes.
    value : object
        What was given.
    least, most : int
        The range, inclusive.
    possible : str
        What may be given, for the message.

    Raises
    ------
    UsageError
        Anything else.
    """
    number = None
    if not isinstance(value, bool) and isinstance(value, numbers.Integral):
        number = operator.index(value)
    if number is None or not least <= number <= most:
        raise impossible(name, value, f"{possible} from {least} to {most}")
    return number


def real(name: str, value: object, least: float, most: float) -> float:
    """Return a value that is a number, whole or not, NumPy's included; see `whole`."""
    number = math.nan
    if not isinstance(value, bool) and isinstance(value, numbers.Real):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
    if not least <= number <= most:
        raise impossible(name, value, f"a number from {least:g} to {most:g}")
    return number


def truth(name: str, value: object) -> bool:
    """Return a value that is True or False itself; 0, 1 and the like are refused."""
    if not isinstance(value, bool):
        raise impossible(name, value, "True or False")
    return value


def text(name: str, value: object) -> str:
    """Return a value that is a string."""
    if not isinstance(value, str):
        raise impossible(name, value, "a text")
    return value


def impossible(name: str, value: object, possible: str) -> UsageError:
    """Return the error for a value that a setting cannot have."""
    return UsageError(f"{setting(name, Shown(value))} is not possible: {possible}")


class Shown:
    """A value in a message: never too long, and whatever becomes of its own ``repr``."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __repr__(self) -> str:
        try:
            shown = repr(self._value)
        except Exception:  # an int of too many digits for Python, or an object whose repr fails
            shown = f"of type {type(self._value).__name__}"
        return shown if len(shown) <= MOST_SHOWN else shown[: MOST_SHOWN - 1] + "…"

"""Values of options: of the right type and in range, or refused by the option's name."""

from __future__ import annotations

import math
import numbers
import operator

from streamsink.errors import UsageError

MOST_SHOWN = 60


def whole(
    option: str, value: object, least: int, most: int, possible: str = "a whole number"
) -> int:
    """A whole number, NumPy's included; neither a bool nor a float.

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
        raise impossible(option, value, f"{possible} from {least} to {most}")
    return number


def real(option: str, value: object, least: float, most: float) -> float:
    """A number, whole or not, NumPy's included; see `whole`."""
    number = math.nan
    if not isinstance(value, bool) and isinstance(value, numbers.Real):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
    if not least <= number <= most:
        raise impossible(option, value, f"a number from {least:g} to {most:g}")
    return number


def truth(option: str, value: object) -> bool:
    """True or False, and nothing that merely counts as one of them."""
    if not isinstance(value, bool):
        raise impossible(option, value, "True or False")
    return value


def text(option: str, value: object) -> str:
    """A string."""
    if not isinstance(value, str):
        raise impossible(option, value, "a text")
    return value


def impossible(option: str, value: object, possible: str) -> UsageError:
    """The error for a value that an option cannot have."""
    try:
        shown = repr(value)
    except Exception:  # an int of more digits than Python prints, or whatever an object does
        shown = f"of type {type(value).__name__}"
    if len(shown) > MOST_SHOWN:
        shown = shown[: MOST_SHOWN - 1] + "…"
    return UsageError(f"--{option} {shown} is not possible: {possible}")

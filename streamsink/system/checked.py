"""Values of options: of the right type and in range, or refused with the option's name."""

from __future__ import annotations

import math
import numbers
import operator

from streamsink.errors import UsageError

MOST_SHOWN = 60


def whole(
    option: str, value: object, least: int, most: int, possible: str = "a whole number"
) -> int:
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
        raise impossible(option, value, f"{possible} from {least} to {most}")
    return number


def real(option: str, value: object, least: float, most: float) -> float:
    """Return a value that is a number, whole or not, NumPy's included; see `whole`."""
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
    """Return a value that is True or False itself; 0, 1 and the like are refused."""
    if not isinstance(value, bool):
        raise impossible(option, value, "True or False")
    return value


def text(option: str, value: object) -> str:
    """Return a value that is a string."""
    if not isinstance(value, str):
        raise impossible(option, value, "a text")
    return value


def impossible(option: str, value: object, possible: str) -> UsageError:
    """Return the error for a value that an option cannot have."""
    try:
        shown = repr(value)
    except Exception:  # an int of too many digits for Python, or an object whose repr fails
        shown = f"of type {type(value).__name__}"
    if len(shown) > MOST_SHOWN:
        shown = shown[: MOST_SHOWN - 1] + "…"
    return UsageError(f"--{option} {shown} is not possible: {possible}")

"""Cutoffs in time, as people write them."""

from __future__ import annotations

import dataclasses
import datetime
import decimal

from recsys.errors import InputError


@dataclasses.dataclass(frozen=True)
class Cutoff:
    """A moment, or a share of the interactions; one of the two is None.

    Attributes:
        share: The share of all interactions that is older, between 0 and 1.
        seconds: Seconds since 1970, or a number in the unit of a log whose
            times are no dates.
        is_date: Whether it was written as a date.
    """

    share: float | None = None
    seconds: decimal.Decimal | None = None
    is_date: bool = False


def parse_cutoff(text: str, name: str) -> Cutoff:
    """Reads a cutoff.

    Args:
        text: A number strictly between 0 and 1 is a share, any other number
            a time in the log's own unit; else an ISO date (its midnight) or
            datetime, in UTC where it names no time zone.
        name: The flag that it comes from, for the error's text.

    Returns:
        The cutoff.

    Raises:
        InputError: It is none of these.
    """
    try:
        number = decimal.Decimal(text)
    except decimal.InvalidOperation:
        return Cutoff(seconds=_seconds(text, name), is_date=True)
    if not number.is_finite():
        raise _error(text, name)
    if 0 < number < 1:
        return Cutoff(share=float(number))
    return Cutoff(seconds=number)


def _seconds(text: str, name: str) -> decimal.Decimal:
    """Returns the seconds from 1970 to an ISO date, exactly."""
    try:
        moment = datetime.datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise _error(text, name) from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    start = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    microseconds = (moment - start) // datetime.timedelta(microseconds=1)
    return decimal.Decimal(microseconds).scaleb(-6)


def _error(text: str, name: str) -> InputError:
    return InputError(
        f"--{name} must be a share of the interactions between 0 and 1, an "
        "ISO date such as 2015-06-30, or a time in the unit of the log. "
        f"Received: {text!r}"
    )

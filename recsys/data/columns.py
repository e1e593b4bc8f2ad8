"""Which columns of a log hold what: names, spellings and their errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from recsys.errors import InputError

# Compared without case, blanks and punctuation: "userId" is "user_id".
SPELLINGS = {
    "user": (
        "user userid uid customer customerid visitorid reviewerid memberid "
        "profileid"
    ).split(),
    "item": (
        "item itemid iid movie movieid product productid asin parentasin "
        "article articleid book bookid isbn track trackid song songid artistid "
        "video videoid contentid gameid businessid sku"
    ).split(),
    "timestamp": (
        "timestamp time ts date datetime unixtime unixreviewtime eventtime "
        "eventtimestamp createdat"
    ).split(),
    "rating": "rating ratings userrating score stars overall".split(),
}


@dataclasses.dataclass(frozen=True)
class ColumnNames:
    """Column names: as given by the user, or as found in a file.

    Attributes:
        user: The column of the raw user ids.
        item: The column of the raw item ids.
        timestamp: The column that gives the order.
        rating: The column of the ratings. None is found by itself when
            asked for, and means none when found; "" asks for none.
        others: Further columns to read.
    """

    user: str | None = None
    item: str | None = None
    timestamp: str | None = None
    rating: str | None = None
    others: tuple[str, ...] = ()

    @property
    def by_role(self) -> dict[str, str]:
        """The columns by role; another column's role is "+" and its name."""
        roles = {role: getattr(self, role) for role in SPELLINGS}
        roles.update((f"+{name}", name) for name in self.others)
        return {role: name for role, name in roles.items() if name}

    def find(self, header: Sequence[str], file: object) -> ColumnNames:
        """Returns the names as the file spells them.

        Args:
            header: The column names of the file.
            file: Its name, for messages.

        Raises:
            InputError: A column is missing or ambiguous, or is used twice.
        """
        found = ColumnNames(
            find_column(header, "user", self.user, file),
            find_column(header, "item", self.item, file),
            find_column(header, "timestamp", self.timestamp, file),
            self._rating(header, file),
        )
        names = list(found.by_role.values())
        if len(set(names)) < len(names):
            raise InputError(
                f"{file}: expected a column of its own for each of user, "
                f"item, timestamp and rating. Received: {', '.join(names)}"
            )
        if missing := [name for name in self.others if name not in header]:
            raise InputError(
                f"{file}: expected a column {missing[0]!r}. "
                f"Received columns: {_quoted(header)}"
            )
        return dataclasses.replace(found, others=self.others)

    def _rating(self, header: Sequence[str], file: object) -> str | None:
        if self.rating == "":
            return None
        return find_optional_column(header, "rating", self.rating, file)


def find_column(
    header: Sequence[str], role: str, given: str | None, file: object
) -> str:
    """Returns the name of the one column that has a role.

    Args:
        header: The column names of the file.
        role: A key of `SPELLINGS`.
        given: The name that the user gave, if any.
        file: The name of the file, for messages.

    Raises:
        InputError: The column is missing or ambiguous.
    """
    found = find_optional_column(header, role, given, file)
    if found is None:
        raise InputError(
            f"{file}: expected one {role} column in the header: name it with "
            f"--{role}_column. Received columns: {_quoted(header)}"
        )
    return found


def find_optional_column(
    header: Sequence[str], role: str, given: str | None, file: object
) -> str | None:
    """Returns the name of the one column that has a role, if there is one.

    Args:
        header: The column names of the file.
        role: A key of `SPELLINGS`.
        given: The name that the user gave, if any.
        file: The name of the file, for messages.

    Raises:
        InputError: The column is ambiguous, or the given one is missing.
    """
    if given is not None:
        matches = [name for name in header if name.strip() == given.strip()]
    else:
        matches = [
            name
            for name in header
            if "".join(filter(str.isalnum, name.lower())) in SPELLINGS[role]
        ]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise InputError(
            f"{file}: expected one {role} column, found "
            f"{' and '.join(map(repr, matches))}: name it with "
            f"--{role}_column. Received columns: {_quoted(header)}"
        )
    if given is not None:
        raise InputError(
            f"{file}: expected the column {given!r} that --{role}_column "
            f"names. Received columns: {_quoted(header)}"
        )
    return None


def _quoted(header: Sequence[str]) -> str:
    return ", ".join(map(repr, header))

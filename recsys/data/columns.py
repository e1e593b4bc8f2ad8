"""The columns of a log: which holds what, and its ids and times."""

from __future__ import annotations

import dataclasses
import datetime
import math
import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.errors import InputError

# Compared without case, blanks and punctuation: "userId" is "user_id". The
# names after the bar count only where none of those before it is found.
_SPELLINGS = {
    "user": (
        "user userid uid customer customerid visitorid reviewerid memberid "
        "profileid | username sessionid session visitor reviewer reviewername "
        "author authorid account accountid member player playerid steamid "
        "cookieid deviceid clientid customerno"
    ),
    "item": (
        "item itemid iid movie movieid product productid asin parentasin "
        "article articleid book bookid isbn track trackid song songid artistid "
        "video videoid contentid gameid businessid sku itemidlist itemlist "
        "itemseq | items itemids aid anime animeid artist venue venueid poi "
        "poiid place placeid location locationid appid newsid postid recipeid "
        "hotelid jokeid listingid stockcode adid courseid history clickhistory "
        "sequence"
    ),
    "timestamp": (
        "timestamp time ts date datetime unixtime unixreviewtime eventtime "
        "eventtimestamp createdat timems timestampms timestamplist | "
        "reviewtime reviewdate orderdate ordertime orderedat eventdate "
        "utctimestamp utctime checkintime checkindate localtime dateadded "
        "datetimeutc playedat listenedat posted postedat invoicedate "
        "purchasedate purchasetime purchasedat transactiondate tdat "
        "ratingtimestamp ratingdate ratedat clicktime accesstime visitdate "
        "occurredat createdon createtime creationdate updatedat day "
        "timestamps times dates"
    ),
    "rating": (
        "rating ratings userrating score stars overall | bookrating "
        "reviewscore reviewrating reviewoverall ratingvalue ratinglist"
    ),
    "event": (
        "event eventtype eventname action actiontype behavior behaviortype "
        "behaviour behaviourtype interactiontype"
    ),
}
SPELLINGS = {
    role: [tier.split() for tier in text.split("|")]
    for role, text in _SPELLINGS.items()
}
# Item columns whose values are lists; in text, with blanks between the items.
_LISTS = (
    "itemidlist itemlist itemseq items itemids history clickhistory sequence"
).split()
# The types that RecBole writes behind the names: "item_id:token".
_TYPES = ("token", "token_seq", "float", "float_seq")


@dataclasses.dataclass(frozen=True)
class TextOptions:
    """How a text file is written, where it does not say so itself.

    Attributes:
        columns: The column names of a file without a header; "_" skips one.
        separator: What stands between two values: a character, the same one
            several times, or a key of `recsys.data.input_files.SEPARATORS`.
        encoding: A codec of Python. Default: UTF-8, or UTF-16 if the file
            begins with its byte order mark.
        layout: "rows" with one event each or "sequences" of a user and all
            items. Default: rows, unless the file can only be sequences.
        time_format: The format of the timestamps, as for `strptime`.
    """

    columns: tuple[str, ...] = ()
    separator: str | None = None
    encoding: str | None = None
    layout: str | None = None
    time_format: str | None = None


@dataclasses.dataclass(frozen=True)
class ColumnNames:
    """Column names: as given by the user, or as found in a file.

    Attributes:
        user: The column of the raw user ids.
        item: The column of the raw item ids.
        timestamp: The column that gives the order. None is found by itself
            when asked for, and means none, and the order of the file, when
            found; "" asks for none.
        rating: The column of the ratings, likewise.
        event: The column of kinds of events, likewise; the first of several.
        others: Further columns to read.
        text: How a text file is written; as given by the user only.
    """

    user: str | None = None
    item: str | None = None
    timestamp: str | None = None
    rating: str | None = None
    event: str | None = None
    others: tuple[str, ...] = ()
    text: TextOptions = TextOptions()

    @property
    def by_role(self) -> dict[str, str]:
        """The columns by role; another column's role is "+" and its name.

        That of kinds of events is "+event", whatever the column's name.
        """
        roles = {role: getattr(self, role) for role in SPELLINGS}
        roles["+event"] = roles.pop("event")
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
            find_optional_column(header, "timestamp", self.timestamp, file),
            find_optional_column(header, "rating", self.rating, file),
            find_optional_column(header, "event", self.event, file),
        )
        # One that nobody named is left to another role.
        if self.event is None and found.event in dataclasses.astuple(found)[:4]:
            found = dataclasses.replace(found, event=None)
        names = list(found.by_role.values())
        if len(set(names)) < len(names):
            raise InputError(
                f"{file}: expected a column of its own for each of user, "
                "item, timestamp, rating and event. "
                f"Received: {', '.join(names)}"
            )
        if missing := [name for name in self.others if name not in header]:
            raise InputError(
                f"{file}: expected a column {missing[0]!r}. "
                f"Received columns: {_quoted(header)}"
            )
        return dataclasses.replace(found, others=self.others)


def concat(tables: Sequence[pa.Table], where: object) -> pa.Table:
    """Returns the rows of all tables; null in a column that one lacks.

    Args:
        tables: The tables.
        where: Where they are from, for messages.

    Raises:
        InputError: A column has types that do not go together.
    """
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise InputError(
            f"{where}: expected columns of one type. "
            f"Received: {' '.join(str(error).split())}"
        ) from error


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
        given: The name that the user gave, if any; "" for no column.
        file: The name of the file, for messages.

    Raises:
        InputError: The column is ambiguous, or the given one is missing.
    """
    if given == "":
        return None
    if given is not None:
        matches = [
            name
            for name in header
            if given.strip() in (name.strip(), _without_type(name))
        ]
    else:
        matches = next(
            (
                found
                for tier in SPELLINGS[role]
                if (found := [name for name in header if _plain(name) in tier])
            ),
            [],
        )
    if len(matches) == 1 or (matches and role == "event" and given is None):
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


def is_list(kind: pa.DataType) -> bool:
    """Whether values of a type are lists, of whatever lengths."""
    return (
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
    )


def is_list_name(name: str) -> bool:
    """Whether a text column holds several items, by its name or type."""
    return name.endswith("_seq") or _plain(name) in _LISTS


def is_usual(name: str, role: str) -> bool:
    """Whether a column has one of the names that are tried first."""
    return _plain(name) in SPELLINGS[role][0]


def _without_type(name: str) -> str:
    stem, _, kind = name.partition(":")
    return stem.strip() if kind.strip() in _TYPES else name.strip()


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, _without_type(name).lower()))


def _quoted(header: Sequence[str]) -> str:
    return ", ".join(map(repr, header))


ID_TYPE = pa.dictionary(pa.int32(), pa.string())


def ids_as_strings(
    ids: pa.ChunkedArray, file: object, names: ColumnNames, role: str
) -> pa.ChunkedArray:
    """Returns a typed column of ids as a dictionary of strings.

    Args:
        ids: Strings or whole numbers, whatever their Arrow type.
        file: The name of the file, for messages.
        names: Its columns.
        role: "user" or "item".

    Raises:
        InputError: The ids are of another type, fractions, or floats too
            large to tell apart.
    """
    if ids.type == ID_TYPE:
        return ids
    name = getattr(names, role)
    where = f"{file}: expected ids in the {role} column {name!r}"
    if pa.types.is_float16(ids.type):
        # Arrow has no dictionaries of these.
        raise InputError(f"{where}. Received: a column of {ids.type}")
    is_encoded = pa.types.is_dictionary(ids.type)
    values = ids.type.value_type if is_encoded else ids.type
    if not (
        pa.types.is_integer(values)
        or pa.types.is_floating(values)
        or is_text(values)
    ):
        raise InputError(f"{where}. Received: a column of {values}")
    if not is_encoded:
        ids = ids.dictionary_encode()
    if pa.types.is_floating(values):
        precision = 24 if pa.types.is_float32(values) else 53
        for chunk in ids.chunks:
            numbers = chunk.dictionary.cast(pa.float64())
            whole = pc.and_(
                pc.equal(numbers, pc.floor(numbers)),
                pc.less(pc.abs(numbers), 2.0**precision),
            )
            if not pc.all(whole).as_py():
                odd = numbers.filter(pc.invert(whole))[0].as_py()
                raise InputError(
                    f"{where}: text, integers, or floats that are whole "
                    f"numbers below 2^{precision}, beyond which they merge. "
                    f"Received: {odd!r}"
                )
        values = pa.int64()
    chunks = [
        pa.DictionaryArray.from_arrays(
            chunk.indices.cast(pa.int32()),
            chunk.dictionary.cast(values).cast(pa.string()),
        )
        for chunk in ids.chunks
    ]
    return pa.chunked_array(chunks, ID_TYPE)


# How dates are written besides ISO 8601. Two that differ in what comes first,
# day or month, may both fit.
_DATES = (
    "%m/%d/%Y",
    "%d/%m/%Y",
    "%d.%m.%Y",
    "%Y/%m/%d",
    "%m-%d-%Y",
    "%d-%m-%Y",
)
_CLOCKS = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
TIME_FORMATS = (
    *(date + clock for date in _DATES for clock in _CLOCKS),
    "%a %b %d %H:%M:%S %z %Y",
    "%a %b %d %H:%M:%S %Y",
    "%m %d, %Y",
    "%B %d, %Y",
    "%b %d, %Y",
    "%d %b %Y",
    "%d-%b-%Y",
)


def is_text(kind: pa.DataType) -> bool:
    """Whether values of a type are strings."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def typed_times(
    times: pa.ChunkedArray, time_format: str | None, where: str
) -> tuple[pa.ChunkedArray, str | None]:
    """Returns timestamps that were written as text by what they say.

    Args:
        times: The timestamps; what is not text is returned as it is.
        time_format: The format, if it is known.
        where: The file and the column, for messages.

    Returns:
        The timestamps, as text if they are not all of one kind; and the format
        if they need one.

    Raises:
        InputError: More than one format fits, with other dates.
    """
    if not is_text(times.type):
        return times, None
    if time_format is None:
        # "2020-09-13 12:00:00 UTC" and "… +00:00" as ISO 8601 writes them.
        iso = pc.replace_substring_regex(times, r"\s*(UTC|GMT)$", "Z")
        iso = pc.replace_substring_regex(iso, r" ([+-]\d\d:?\d\d)$", r"\1")
        for kind in (
            pa.int64(),
            pa.float64(),
            pa.timestamp("us"),
            pa.timestamp("us", tz="UTC"),
        ):
            try:
                return iso.cast(kind), None
            except pa.ArrowInvalid:
                continue
    found: dict[str, pa.ChunkedArray] = {}
    for pattern in TIME_FORMATS if time_format is None else (time_format,):
        try:
            dates = pc.strptime(times, format=pattern, unit="us")
        except pa.ArrowInvalid:
            continue
        # "%Y" takes the year 20 for what it says.
        if len(dates) and (pc.min(pc.year(dates)).as_py() or 0) >= 1000:
            found[pattern] = dates
    if not found:
        return times, None
    (pattern, dates), *others = found.items()
    for other, also in others:
        if not dates.equals(also):
            raise InputError(
                f"{where}: expected dates that can be read in one way; say "
                f"which with --time_format={pattern!r} or "
                f"--time_format={other!r}. Received: {times[0].as_py()!r}"
            )
    return dates, pattern


def kind_of_time(value: object, time_format: str | None) -> str | None:
    """Returns "number" or some "date"; None for anything else."""
    if isinstance(value, (datetime.date, datetime.datetime)):
        return "date"
    text = str(value).strip()
    if time_format is None:
        try:
            return "number" if math.isfinite(float(text)) else None
        except ValueError:
            pass
        try:
            iso = re.sub(r"\s*(UTC|GMT)$", "Z", text)
            has_zone = datetime.datetime.fromisoformat(iso).tzinfo is not None
            return "date with a time zone" if has_zone else "date"
        except ValueError:
            pass
    for pattern in TIME_FORMATS if time_format is None else (time_format,):
        try:
            datetime.datetime.strptime(text, pattern)
            return "date"
        except ValueError:
            continue
    return None


def is_date(kind: pa.DataType) -> bool:
    """Whether a type says a moment; times of a day and durations do not."""
    return pa.types.is_timestamp(kind) or pa.types.is_date(kind)


def to_timestamps(
    columns: Sequence[pa.ChunkedArray], parts: Sequence[object]
) -> tuple[np.ndarray, int]:
    """Returns int64 timestamps, and how many of them make a second.

    Args:
        columns: The times of each part.
        parts: What the parts are called, for messages.

    Raises:
        InputError: The parts differ in kind, or a time is beyond 64 bits.
    """
    temporal = [is_date(column.type) for column in columns]
    if len(set(temporal)) == 2:
        part = temporal.index(not temporal[0])
        raise InputError(
            f"{parts[part]}: expected timestamps of the kind in {parts[0]}, "
            f"{columns[0].type}. Received: {columns[part].type}"
        )
    if temporal[0]:
        micros = [
            _micros(column, part)
            for column, part in zip(columns, parts, strict=True)
        ]
        return _concatenate(micros), 1_000_000
    if not any(pa.types.is_floating(column.type) for column in columns):
        times = _concatenate(columns)
        if len(times) and times.max() > _HIGHEST_TIME:
            raise _too_large(times.max(), parts[0])
        times = times.astype(np.int64, copy=False)
        return times, _units_per_second(times, parts[0])
    seconds = _concatenate(columns).astype(np.float64, copy=False)
    if (seconds == np.floor(seconds)).all():
        times = to_whole(seconds, parts[0])
        return times, _units_per_second(times, parts[0])
    return to_whole(seconds, parts[0], 1e6), 1_000_000


def _units_per_second(times: np.ndarray, where: object) -> int:
    """Returns 1,000 if `[n]` int64 times are milliseconds since 1970, etc.

    They are if all of them are within the years 1990 to 2100 so.

    Raises:
        InputError: They are where they are not seconds since 1970.
    """
    if len(times):
        lowest, highest = int(times.min()), int(times.max())
        for per_second in (10**3, 10**6, 10**9):
            if lowest / per_second >= 63e7 and highest / per_second < 41e8:
                return per_second
        is_mixed = lowest >= 63e7 and 63e10 <= highest < 41e11
        if is_mixed and not ((times >= 41e8) & (times < 63e10)).any():
            raise InputError(
                f"{where}: expected times of one unit. Received: {lowest} and "
                f"{highest}, seconds and milliseconds since 1970"
            )
    return 1


def _micros(times: pa.ChunkedArray, part: object) -> pa.ChunkedArray:
    """Returns dates as int64 microseconds; what is finer is cut off."""
    is_finer = pa.types.is_timestamp(times.type) and times.type.unit == "ns"
    try:
        micros = times.cast(pa.timestamp("us"), safe=not is_finer)
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{part}: expected dates that 64 bits of microseconds can hold. "
            f"Received: {' '.join(str(error).split())}"
        ) from error
    return micros.cast(pa.int64())


_HIGHEST_TIME = 2**63 - 1


def to_whole(times: np.ndarray, where: object, unit: float = 1) -> np.ndarray:
    """Rounds `[n]` float64 times to int64; `where` is for the message.

    Raises:
        InputError: A time is beyond int64.
    """
    # As floats, the times at both ends are 2^63 themselves.
    with np.errstate(over="ignore"):
        times = times.astype(np.float64) * unit
    beyond = np.abs(times) >= 2.0**63
    if beyond.any():
        raise _too_large(times[beyond][0], where)
    return np.rint(times).astype(np.int64)


def _too_large(time: object, where: object) -> InputError:
    return InputError(
        f"{where}: expected times within the range of 64-bit integers. "
        f"Received: {time}"
    )


def _concatenate(columns: Sequence[pa.ChunkedArray]) -> np.ndarray:
    # Arrow's own conversion copies once; parts may differ in their type.
    arrays = [column.to_numpy() for column in columns]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

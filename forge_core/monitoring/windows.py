"""Windows: what a version saw in one profiling interval, and the reference it is compared with.

A window is a folder of parts, one a writer: `windows/{model}/{version}/{start}/{part}.json` (counts) and `.bin`
(whylogs profile). A writer puts a larger part in the place of its last one, whole: the profile first, the counts last,
so a profile without counts is the trace of an interrupted write and is ignored. Reading adds the parts up.
"""

import gzip
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath

import pandas as pd

from forge_core.errors import DataNotFound
from forge_core.monitoring.profiles import merge_profiles, profile_frame
from forge_core.statistics.counts import GridCounts
from forge_core.statistics.distributions import ReferenceGrid
from forge_core.storage import Storage

logger = logging.getLogger(__name__)

# Not `.gz`: MLflow tells S3 of that encoding, and whoever downloads the file over HTTP then gets it unpacked.
WINDOWS_FILE = "reference_windows.gzip"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_STAMP = "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True)
class Window:
    """One profiling interval of one version: when it starts (UTC) and how many rows it holds."""

    version: str
    start: datetime
    n_rows: int


def window_start(moment: datetime, hours: float) -> datetime:
    """Return the start of the window that holds a moment; windows are counted from 1970-01-01 UTC.

    Raises
    ------
    ValueError
        When the moment has no time zone, or the length is not a positive number of whole seconds.
    """
    length = _length(hours)
    if moment.tzinfo is None:
        raise ValueError(f"expected a moment with a time zone, found {moment.isoformat()}; windows are in UTC")
    return _EPOCH + (moment - _EPOCH) // length * length


def window_starts(moments: pd.Series, hours: float) -> pd.Series:
    """Return what `window_start` gives for each of n moments, shape (n,), datetime64[us, UTC], same index.

    Raises
    ------
    ValueError
        When moments have no time zone or are missing, or as `window_start` does for the length.
    """
    if not isinstance(moments.dtype, pd.DatetimeTZDtype) or moments.hasnans:
        found = f"{moments.isna().sum()} missing ones of {moments.dtype}"
        raise ValueError(f"expected moments with a time zone and none missing, found {found}; windows are in UTC")
    since_epoch = moments.dt.as_unit("us").astype("int64")
    past_start = since_epoch % int(_length(hours).total_seconds() * 1_000_000)
    return pd.Series((since_epoch - past_start).to_numpy().view("datetime64[us]"), moments.index).dt.tz_localize("UTC")


def _length(hours: float) -> timedelta:
    length = timedelta(hours=hours)
    if length <= timedelta(0) or length.microseconds:
        raise ValueError(f"expected a window of a positive number of whole seconds, found {hours} hours")
    return length


class WindowStore:
    """The windows of one model.

    Parameters
    ----------
    storage : Storage
    model : str

    Examples
    --------
    >>> reference = pd.DataFrame({"age": range(100)})
    >>> grid = ReferenceGrid.fit(reference, categorical=[], numerical=["age"])
    >>> store = WindowStore(Storage("memory://windows-example"), "demo")
    >>> start = window_start(datetime(2024, 1, 1, 13, 5, tzinfo=UTC), hours=24)
    >>> store.write_part("1", start, "writer-1", grid.count(reference), b"")
    >>> store.windows("1")[0].n_rows
    100
    """

    def __init__(self, storage: Storage, model: str) -> None:
        self.storage, self.model = storage, model

    def write_part(self, version: str, start: datetime, part: str, counts: GridCounts, profile: bytes) -> None:
        """Write what one writer saw of a window, in the place of what it wrote before; `start` by `window_start`."""
        key = f"{self._folder(version)}/{start.astimezone(UTC):{_STAMP}}/{part}"
        self.storage.write_bytes(f"{key}.bin", profile)
        self.storage.write_json(f"{key}.json", counts.to_dict())

    def windows(self, version: str) -> list[Window]:
        """Return the version's windows in order of time; none is an empty list."""
        rows: dict[datetime, int] = {}
        for key in self._parts(version, None):
            rows[_start_of(key)] = rows.get(_start_of(key), 0) + self.storage.read_json(key)["n_rows"]
        return [Window(version, start, rows[start]) for start in sorted(rows)]

    def read(
        self, version: str, grid: ReferenceGrid, since: datetime | None = None, until: datetime | None = None
    ) -> dict[datetime, GridCounts]:
        """Return the counts of each window that starts in [since, until), in order of time.

        A part that cannot be read is left out with a warning: the rest is worth looking at all the same.

        Raises
        ------
        ValueError
            When a part was counted on another grid.
        """
        found: dict[datetime, GridCounts] = {}
        for key in self._parts(version, None):
            start = _start_of(key)
            if (since and start < since) or (until and start >= until):
                continue
            try:
                counts = GridCounts.from_dict(self.storage.read_json(key))
            except (ValueError, KeyError, TypeError) as error:
                logger.warning("window part left out key=%s: %s: %s", key, type(error).__name__, error)
                continue
            found[start] = found.get(start, grid.empty()) + counts
        return dict(sorted(found.items()))

    def counts(self, version: str, grid: ReferenceGrid, starts: Iterable[datetime] | None = None) -> GridCounts:
        """Return the counts of the given windows (default: all) added up; no window gives counts of no rows.

        Raises
        ------
        ValueError
            When a part was counted on another grid.
        """
        wanted = None if starts is None else set(starts)
        parts = self.read(version, grid)
        return sum((c for start, c in parts.items() if wanted is None or start in wanted), start=grid.empty())

    def profile(self, version: str, starts: Iterable[datetime] | None = None) -> bytes:
        """Return the merged whylogs profile of the given windows (default: all).

        Raises
        ------
        DataNotFound
            When there is no such window.
        """
        parts = self._parts(version, starts)
        if not parts:
            raise DataNotFound(
                f"expected windows of {self.model} version {version}, found none at {self.storage.url}/"
                f"{self._folder(version)}; serve some requests first, or ask for windows that `windows()` lists"
            )
        return merge_profiles(self.storage.read_bytes(f"{key.removesuffix('.json')}.bin") for key in parts)

    def _folder(self, version: str) -> str:
        return f"windows/{self.model}/{version}"

    def _parts(self, version: str, starts: Iterable[datetime] | None) -> list[str]:
        keys = self.storage.list(self._folder(version), suffix=".json")
        if starts is None:
            return keys
        wanted = set(starts)
        return [key for key in keys if _start_of(key) in wanted]


def _start_of(key: str) -> datetime:
    return datetime.strptime(PurePosixPath(key).parent.name, _STAMP).replace(tzinfo=UTC)


# Windows of the training rows that are kept, the newest ones; days for half a year.
MAX_REFERENCE_WINDOWS = 200


@dataclass(frozen=True, eq=False)
class ReferenceProfile:
    """What a version was trained on, and what it answered on held-out rows: its grid, counts and whylogs profile.

    `windows` are the training rows by time, where they have one: what one window differs from the next without drift.
    """

    grid: ReferenceGrid
    counts: GridCounts
    profile: bytes
    windows: Mapping[datetime, GridCounts] = field(default_factory=dict)

    @classmethod
    def build(
        cls,
        frame: pd.DataFrame,
        categorical: Sequence[str],
        numerical: Sequence[str],
        *,
        outputs: pd.DataFrame | None = None,
        times: pd.Series | None = None,
        window_hours: float = 24.0,
    ) -> "ReferenceProfile":
        """Return the reference that training rows fix.

        Parameters
        ----------
        frame : DataFrame, shape (n_rows, n_columns)
            Training rows; only the named columns are used.
        categorical, numerical : sequence of str
        outputs : DataFrame, optional
            Model outputs on held-out rows (`probability`), watched as further features. Its rows are others than
            the training rows, and as many as there are.
        times : Series of datetime, UTC, optional
            Event time of each training row, for windows of `window_hours`.
        """
        grid = ReferenceGrid.fit(frame, categorical, numerical)
        counts, profile = grid.count(frame), profile_frame(frame[[*numerical, *categorical]])
        if outputs is not None:
            numeric = outputs.select_dtypes("number").columns.tolist()
            answers = ReferenceGrid.fit(outputs, [c for c in outputs.columns if c not in numeric], numeric)
            grid = ReferenceGrid({**grid.features, **answers.features}, grid.scores)
            both = {**counts.features, **answers.count(outputs).features}
            counts = GridCounts(grid.digest, len(frame), both, counts.pairs)
            profile = merge_profiles([profile, profile_frame(outputs)])
        return cls(grid, counts, profile, _count_windows(grid, frame, times, window_hours))

    def to_files(self) -> dict[str, bytes]:
        """Return `reference.json` (grid and counts), `reference.bin` (whylogs) and `reference_windows.gzip`."""
        text = json.dumps({"grid": self.grid.to_dict(), "counts": self.counts.to_dict()}, sort_keys=True)
        windows = {start.isoformat(): counts.to_dict() for start, counts in self.windows.items()}
        packed = gzip.compress(json.dumps(windows, sort_keys=True).encode(), mtime=0)
        return {"reference.json": text.encode(), "reference.bin": self.profile, WINDOWS_FILE: packed}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> "ReferenceProfile":
        """Return the reference that `to_files` gave away."""
        value = json.loads(files["reference.json"])
        grid = ReferenceGrid.from_dict(value["grid"])
        windows = json.loads(gzip.decompress(files[WINDOWS_FILE])) if WINDOWS_FILE in files else {}
        starts = {datetime.fromisoformat(start): GridCounts.from_dict(counts) for start, counts in windows.items()}
        return cls(grid, GridCounts.from_dict(value["counts"]), files["reference.bin"], starts)


def _count_windows(
    grid: ReferenceGrid, frame: pd.DataFrame, times: pd.Series | None, hours: float
) -> dict[datetime, GridCounts]:
    if times is None:
        return {}
    watched = [name for name in grid.features if name in frame.columns]
    starts = window_starts(pd.Series(pd.to_datetime(times, utc=True).array, frame.index), hours)
    newest = sorted(starts.unique())[-MAX_REFERENCE_WINDOWS:]
    counted = {}
    for start in newest:
        found = grid.of(watched).count(frame[starts == start])
        # Outputs are not known here: in-sample answers are better than those to come.
        counted[start] = GridCounts(grid.digest, found.n_rows, {**grid.empty().features, **found.features}, found.pairs)
    return counted

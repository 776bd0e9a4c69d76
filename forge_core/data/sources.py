"""From an address to a source of rows, whatever kind of address it is.

flights:?since=2013-01-01&until=2013-04-01&labels_until=2013-04-01
sample:?rows=5000&drift=1.0&seed=3&label_delay_hours=24
data/rows.csv   data/2013-*.csv.gz   s3://bucket/folder/   https://host/rows.jsonl
postgresql://user@host/db?table=sales.orders   warehouse (a name in the catalogue)

A package adds schemes by the entry-point group `forge_core.sources`: the name is the scheme, the object takes the
address and a mapping of options and returns a `Source`.
"""

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd

from forge_core.data.batches import BATCH_ROWS, Source, check_names, hide_secrets, slices
from forge_core.data.catalogue import fill_in, find_entry, is_name
from forge_core.data.coercion import Kind
from forge_core.data.files import open_files
from forge_core.data.house_sources import open_flights, open_sample
from forge_core.data.sql import DIALECTS, open_sql
from forge_core.errors import ConfigurationError, EmptyData

__all__ = ["BATCH_ROWS", "SCHEMES", "TIMES", "FrameSource", "Opener", "Source", "open_source"]

logger = logging.getLogger(__name__)

Opener = Callable[[str, Mapping[str, Any]], Source]
GROUP = "forge_core.sources"
# Options that only sources who know their rows' times follow; the others are taken whole.
TIMES = ("since", "until", "labels_until")
SCHEMES: dict[str, Opener] = {
    "flights": open_flights,
    "sample": open_sample,
    **dict.fromkeys(("file", "http", "https", "memory", "s3"), open_files),
    **dict.fromkeys(DIALECTS, open_sql),
}
_TIMED = (open_flights, open_sample)
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9_-]*)(?:\+[a-zA-Z0-9_.-]+)?:")


def open_source(source: str | Path | pd.DataFrame, *, catalogue: Path | None = None, **options: Any) -> Source:
    """Return a source; nothing is read yet.

    Parameters
    ----------
    source : str, Path or DataFrame
        An address as in the module's head, or rows.
    catalogue : Path, optional
        File of named sources (`forge_core.data.catalogue`); without it a bare name is only a folder's.
    **options
        As in the address' query, over which they win; None says nothing. Files take `encoding`, `delimiter`,
        `sheet` and `format`, databases `table` and `query`; `since`, `until` and `labels_until` (ISO times or
        datetimes, UTC) choose rows of `flights:` and `sample:` only.

    Raises
    ------
    ConfigurationError
        For an unknown scheme, ending, name or option, listing the known ones.
    """
    options = {name: value for name, value in options.items() if value is not None}
    if isinstance(source, pd.DataFrame):
        _check_no_more(_without_times("frame", options))
        return FrameSource(source)
    address = str(source)
    if isinstance(source, str) and is_name(address) and not Path(address).is_dir():
        if catalogue is None:
            raise ConfigurationError(
                f"expected an address, found the bare name {address!r}; names need a catalogue "
                "(forge_core.data.loaders.resolve reads the one in FORGE_CATALOGUE_FILE)"
            )
        entry = find_entry(address, catalogue)
        address, options = fill_in(entry.address), {**entry.options, **options}
    opener = _opener(address)
    return opener(address, options if opener in _TIMED else _without_times(hide_secrets(address), options))


class FrameSource(Source):
    """Rows that are there already."""

    address = "frame"

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame

    def batches(self, kinds: Mapping[str, Kind] | None = None) -> Iterator[pd.DataFrame]:
        """Give the rows, with the columns' names as text."""
        if self.frame.empty:
            raise EmptyData("expected rows in the frame, found none")
        names = check_names(self.frame.columns, "the frame")
        yield from slices(self.frame.set_axis(names, axis=1))


def _opener(address: str) -> Opener:
    found = _SCHEME.match(address)
    scheme = found[1].lower() if found else ""
    plugin = _plugin(scheme) if scheme else None
    if scheme in SCHEMES and (plugin is None or not _is_path(address)):
        if plugin is not None:
            ours = SCHEMES[scheme]
            raise ConfigurationError(
                f"the scheme {scheme}: belongs to {ours.__module__}:{ours.__name__}, and the plug-in {plugin.value} "
                f"offers it too; rename the plug-in's entry point in the group {GROUP}, or uninstall it"
            )
        return SCHEMES[scheme]
    if plugin is not None:
        return plugin.load()
    if "://" in address and scheme not in fsspec.available_protocols() and "::" not in address:
        raise ConfigurationError(
            f"expected a source with a known scheme ({', '.join([*SCHEMES, *_plugins()])}), "
            f"found {hide_secrets(address)!r}; install the package that reads it, if there is one"
        )
    return open_files


def _is_path(address: str) -> bool:
    return "://" not in address and Path(address).exists()


def _plugins() -> list[str]:
    return sorted({point.name for point in entry_points(group=GROUP)})


def _plugin(scheme: str) -> EntryPoint | None:
    return next(iter(entry_points(group=GROUP, name=scheme)), None)


def _without_times(address: str, options: Mapping[str, Any]) -> dict[str, Any]:
    if ignored := sorted(set(options) & set(TIMES)):
        logger.info("source=%s ignored=%s reason=taken_whole", address, ",".join(ignored))
    return {name: value for name, value in options.items() if name not in TIMES}


def _check_no_more(options: Mapping[str, Any]) -> None:
    if options:
        raise ConfigurationError(f"frames have no option {', '.join(sorted(options))}; known: {', '.join(TIMES)}")

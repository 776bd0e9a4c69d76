"""The house's own rows as sources: `flights:` and `sample:`, with their options and contracts."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

import pandas as pd

from forge_core.data.batches import Source, slices
from forge_core.data.coercion import Kind
from forge_core.data.contracts import Contract
from forge_core.data.flights import flights_contract, load_flights
from forge_core.data.sample import generate_sample_data, sample_contract
from forge_core.errors import ConfigurationError, EmptyData

_TIMES = ("since", "until", "labels_until")


@dataclass(frozen=True)
class HouseSource(Source):
    """Rows that follow from the address, the options and the code alone."""

    address: str
    options: Mapping[str, Any]
    load: Callable[[], pd.DataFrame]
    by_hand: Callable[[], Contract]

    def contract(self) -> Contract | None:
        """Return the contract written by hand."""
        return self.by_hand()

    def fingerprint(self) -> str | None:
        """Return a hash of the address and options."""
        options = json.dumps(self.options, sort_keys=True, default=str) if self.options else ""
        return hashlib.sha256((self.address + options).encode()).hexdigest()

    def batches(self, kinds: Mapping[str, Kind] | None = None) -> Iterator[pd.DataFrame]:
        """Give the rows by time, or raise EmptyData where the options leave none."""
        frame = self.load()
        if frame.empty:
            raise EmptyData(f"{self.address} has no rows with {dict(self.options)}; widen the time span")
        yield from slices(frame)


def open_flights(address: str, options: Mapping[str, Any]) -> HouseSource:
    """Return the source of the New York flights of 2013; options `since`, `until` and `labels_until`."""
    chosen = _read_options(address, options, dict.fromkeys(_TIMES, _moment))
    return HouseSource(address, options, lambda: load_flights(**chosen), flights_contract)


def open_sample(address: str, options: Mapping[str, Any]) -> HouseSource:
    """Return the source of generated rows; see `generate_sample_data` for its dials."""
    known: dict[str, Callable[[Any], Any]] = {
        "rows": int, "drift": float, "seed": int, "label_delay_hours": float, "rows_per_hour": float,
        "start": _moment, **dict.fromkeys(_TIMES, _moment),
    }  # fmt: skip
    chosen = _read_options(address, options, known)
    return HouseSource(address, options, lambda: _sample(dict(chosen)), sample_contract)


def _sample(chosen: dict[str, Any]) -> pd.DataFrame:
    since, until, labels_until = (chosen.pop(option, None) for option in _TIMES)
    names = {"rows": "n_rows", "seed": "random_state"}
    frame = generate_sample_data(**{names.get(option, option): value for option, value in chosen.items()})
    keep = pd.Series(True, index=frame.index)
    if since is not None:
        keep &= frame["event_time"] >= since
    if until is not None:
        keep &= frame["event_time"] < until
    if labels_until is not None:
        keep &= frame["known_at"] <= labels_until
    return frame[keep].reset_index(drop=True)


def _read_options(
    address: str, options: Mapping[str, Any], known: Mapping[str, Callable[[Any], Any]]
) -> dict[str, Any]:
    name, _, rest = address.partition(":")
    given = {**dict(parse_qsl(rest.removeprefix("?"), keep_blank_values=True)), **options}
    if unknown := sorted(set(given) - set(known)):
        raise ConfigurationError(f"{name}: has no option {', '.join(unknown)}; known: {', '.join(known)}")
    read = {}
    for option, value in given.items():
        try:
            read[option] = known[option](value)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"{name}: cannot use {option}={value!r}: {error}") from error
    return read


def _moment(value: str | datetime) -> datetime:
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)

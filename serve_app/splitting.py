"""Traffic that is shared out among variants: who answers which row, and the champion where a variant cannot.

A row that only the champion's contract lets in, and one on which the variant fails, is answered by the champion all the
same; the log says so, and why.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from forge_core.data.many_row_checks import Rows, as_records
from forge_core.deployment.routing_table import Split, shares_of
from forge_core.errors import SchemaViolation
from forge_core.experiments.assignment import Segments, assign, point_of, unit_id
from serve_app.live_version import LiveVersion

logger = logging.getLogger(__name__)

CHAMPION = "champion"
_FIRST = (0,)


class Assigned(NamedTuple):
    """A unit's variant, that one's share of the traffic at this moment (None where an override decided), its id."""

    variant: str
    propensity: float | None
    unit: str


class Answered(NamedTuple):
    """One row's way: who was to answer it, who did, and the seconds that it took in the router."""

    live: LiveVersion
    variant: str
    row: tuple[Any, ...]
    score: Any
    seconds: float
    assigned: Assigned
    fault: str


@dataclass(frozen=True)
class LiveSplit:
    """A split over versions that are held here.

    `versions` lacks those that could not be loaded; their rows go to the champion.
    """

    id: str
    salt: str
    keyed: bool
    segments: Segments
    shares: Mapping[str, float]
    overrides: Mapping[str, str]
    versions: Mapping[str, LiveVersion]
    champion: LiveVersion
    champion_name: str

    @classmethod
    def of(cls, split: Split, held: Mapping[str, LiveVersion], champion: LiveVersion) -> "LiveSplit":
        """Return a table's split with the versions that are held."""
        variants = split["variants"]
        names = [name for name, version in variants.items() if version == champion.version]
        return cls(
            id=split["id"],
            salt=split["salt"],
            keyed=split["key"] is not None,
            segments=tuple((end, name) for end, name in split["segments"]),
            shares={name: share / 100 for name, share in shares_of(split).items()},
            overrides=split.get("overrides", {}),
            versions={name: held[version] for name, version in variants.items() if version in held},
            champion=champion,
            champion_name=names[0] if names else CHAMPION,
        )

    def assign(self, key: str) -> Assigned:
        """Return the variant of a user key or request id."""
        unit = unit_id(self.salt, key)
        if self.overrides and key in self.overrides:
            return Assigned(self.overrides[key], None, unit)
        variant = assign(self.segments, point_of(unit))
        return Assigned(variant, self.shares[variant], unit)

    async def ask(self, records: Rows, keys: Sequence[str]) -> list[Answered]:
        """Return what became of each row, in order.

        Raises
        ------
        SchemaViolation
            For rows that neither their variant's contract nor the champion's lets in; names the faulty rows.
        ServiceUnavailable
            When the champion does not answer.
        """
        if len(keys) == 1:
            return [await self._ask_one(records, keys[0])]
        assigned = [self.assign(key) for key in keys]
        groups: dict[str, list[int]] = {}
        for number, (variant, _, _) in enumerate(assigned):
            # By version, so that two variants of one version share a batch.
            version = self.versions.get(variant)
            groups.setdefault(version.version if version else "", []).append(number)
        if len(groups) == 1:
            parts = [await self._ask_group(records, assigned, range(len(keys)))]
        else:
            given = as_records(records) if isinstance(records, Mapping) else records
            tasks = [self._ask_group([given[n] for n in g], assigned, g) for g in groups.values()]
            parts = await asyncio.gather(*tasks)
        answers: list[Any] = [None] * len(keys)
        for part in parts:
            for number, answered in part:
                answers[number] = answered
        return answers

    async def _ask_one(self, records: Rows, key: str) -> Answered:
        """Ask for one row, as nearly all requests do, with as little beside it as can be."""
        assigned, started = self.assign(key), time.perf_counter()
        live, fault = self.versions.get(assigned.variant), "error"
        if live is not None:
            try:
                rows = live.contract.check_rows(records)
                scores = await live.lane.ask(rows)
                took = time.perf_counter() - started
                return Answered(live, assigned.variant, rows[0], scores[0], took, assigned, "")
            except Exception as error:
                if live is self.champion:
                    raise
                fault = "contract" if isinstance(error, SchemaViolation) else "error"
                logger.warning("the champion answers for a variant version=%s: %s", live.version, error)
        ((_, answered),) = await self._ask_champion(records, [assigned], _FIRST, fault, started)
        return answered

    async def _ask_group(
        self, records: Rows, assigned: Sequence[Assigned], numbers: Sequence[int]
    ) -> list[tuple[int, Answered]]:
        """Ask the one version that rows were assigned to, and the champion for those that it could not answer."""
        live = self.versions.get(assigned[numbers[0]].variant)
        if live is self.champion:
            return await self._ask_champion(records, assigned, numbers, "")
        if live is None:
            return await self._ask_champion(records, assigned, numbers, "error")
        started = time.perf_counter()
        try:
            rows = live.contract.check_rows(records)
        except SchemaViolation as error:
            return await self._ask_apart(records, assigned, numbers, error)
        try:
            scores = await live.lane.ask(rows)
        except Exception as error:
            logger.warning("the champion answers for a variant version=%s rows=%d: %s", live.version, len(rows), error)
            return await self._ask_champion(records, assigned, numbers, "error", started)
        seconds = time.perf_counter() - started
        return [
            (n, Answered(live, assigned[n].variant, row, score, seconds, assigned[n], ""))
            for n, row, score in zip(numbers, rows, scores, strict=True)
        ]

    async def _ask_apart(
        self, records: Rows, assigned: Sequence[Assigned], numbers: Sequence[int], error: SchemaViolation
    ) -> list[tuple[int, Answered]]:
        """Ask the variant for the rows that keep its contract, and the champion for the others."""
        given = as_records(records) if isinstance(records, Mapping) else records
        faulty = _faulty_rows(error, self.versions[assigned[numbers[0]].variant], given)
        good = [place for place in range(len(numbers)) if place not in faulty]
        bad = sorted(faulty)
        asked = [
            self._ask_champion([given[p] for p in bad], assigned, [numbers[p] for p in bad], "contract"),
            *([self._ask_group([given[p] for p in good], assigned, [numbers[p] for p in good])] if good else []),
        ]
        return [one for part in await asyncio.gather(*asked) for one in part]

    async def _ask_champion(
        self,
        records: Rows,
        assigned: Sequence[Assigned],
        numbers: Sequence[int],
        fault: str,
        started: float | None = None,
    ) -> list[tuple[int, Answered]]:
        begun = time.perf_counter() if started is None else started
        live = self.champion
        try:
            rows = live.contract.check_rows(records)
        except SchemaViolation as error:
            raise _renumbered(error, numbers, len(assigned)) from None
        scores = await live.lane.ask(rows)
        seconds = time.perf_counter() - begun
        return [
            (n, Answered(live, self.champion_name if fault else of.variant, row, score, seconds, of, fault))
            for n, row, score in zip(numbers, rows, scores, strict=True)
            for of in (assigned[n],)
        ]


def _faulty_rows(error: SchemaViolation, live: LiveVersion, records: Sequence[Any]) -> set[int]:
    """Return the places of rows that break a contract; only the first hundred faults stand in an error."""
    if len(records) == 1:
        return {0}
    faults = error.context["faults"]
    if len(faults) < 100:
        return {fault["row"] for fault in faults}
    return {place for place, record in enumerate(records) if not _keeps(live, record)}


def _keeps(live: LiveVersion, record: Any) -> bool:
    try:
        live.contract.check_rows([record])
    except SchemaViolation:
        return False
    return True


def _renumbered(error: SchemaViolation, numbers: Sequence[int], n_rows: int) -> SchemaViolation:
    """Return the error with the rows' places in the whole request."""
    if n_rows == 1 or len(numbers) == n_rows:
        return error
    faults = [{**fault, "row": numbers[fault.get("row", 0)]} for fault in error.context["faults"]]
    shown = "; ".join(f"row {f['row']}, {f['field']}: {f['reason']}" for f in faults[:5])
    return SchemaViolation(f"{len(faults)} faults: {shown}", context={"faults": faults})

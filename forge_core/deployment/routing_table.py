"""The table that the router gets: who answers a model's traffic, who is held without any, who gets copies of it.

A row names the champion, which has the traffic; the candidate on trial; a version that stays warm for a rollback; the
split that shares the traffic out among variants; and the shadow, whose answers nobody sees.
"""

from collections.abc import Iterable
from typing import NotRequired, TypedDict

from forge_core.deployment.routing import State

# Roles that name one version each.
ROLES = ("champion", "candidate", "warm")


class Split(TypedDict):
    """How a model's traffic is shared out.

    `id` says whose it is (`rollout:4`, `experiment:checkout`), `salt` goes into the hash of the user key. Where `key`
    is null each request is a unit of its own. `variants` gives a version to each name, `segments` the upper ends of
    the parts of [0, 1) that fall to a name, `overrides` names the variant of single user keys.
    """

    id: str
    salt: str
    key: str | None
    variants: dict[str, str]
    segments: list[tuple[float, str]]
    overrides: NotRequired[dict[str, str]]


class Shadow(TypedDict):
    """Which version gets copies of the champion's traffic, and of what share in (0, 1]."""

    version: str
    share: float


class Route(TypedDict, total=False):
    """One model's row of the table."""

    champion: str
    candidate: str
    warm: str
    split: Split
    shadow: Shadow


Table = dict[str, Route]


def variant_name(model: str, version: str) -> str:
    """Return the name of the Serve application that serves a version."""
    return f"variant-{model}-v{version}"


def desired_table(state: State, live: Table, trying: str | None) -> Table:
    """Return what the router should hold.

    Everything that the state names, but of the candidates only those that are tried, held already, or have traffic.
    """
    table: Table = {}
    for model, entry in state["models"].items():
        row: Route = {name: entry[name] for name in (*ROLES, "split", "shadow") if entry.get(name)}  # type: ignore[assignment]
        candidate = row.get("candidate")
        if model != trying and candidate not in {live.get(model, {}).get("candidate"), *traffic_versions(row)}:
            row.pop("candidate", None)
        if row:
            table[model] = row
    return table


def traffic_versions(row: Route) -> set[str]:
    """Return the versions that a row's split and shadow name."""
    shared = set(row["split"]["variants"].values()) if "split" in row else set()
    return shared | ({row["shadow"]["version"]} if "shadow" in row else set())


def row_versions(row: Route) -> set[str]:
    """Return every version that a row names."""
    named = {row.get("champion"), row.get("candidate"), row.get("warm")}
    return {version for version in named if version} | traffic_versions(row)


def held_versions(table: Table) -> set[tuple[str, str]]:
    """Return every (model, version) of a table."""
    return {(model, version) for model, row in table.items() for version in row_versions(row)}


def champions_alone(table: Table) -> Table:
    """Return the table with nothing but champions: what must be served whatever becomes of the rest."""
    return {model: {"champion": row["champion"]} for model, row in table.items() if "champion" in row}


def names_of(versions: Iterable[tuple[str, str]]) -> str:
    """Return the applications of versions, as people read them."""
    return ", ".join(variant_name(*v) for v in sorted(versions))


def told_table(table: Table) -> str:
    """Return in words where the traffic goes, and what is held without any."""
    champions = {(model, row["champion"]) for model, row in table.items() if "champion" in row}
    busy = champions | {(model, version) for model, row in table.items() for version in traffic_versions(row)}
    idle = held_versions(table) - busy
    told = [f"routing traffic to {names_of(champions) or 'no model'}"]
    for model, row in sorted(table.items()):
        if "split" in row:
            told.append(f"{row['split']['id']} shares that of {model} out: {told_split(row['split'])}")
        if "shadow" in row:
            told.append(f"{row['shadow']['share']:.3g} of it copied to {variant_name(model, row['shadow']['version'])}")
    return "; ".join([*told, *([f"holding {names_of(idle)} without traffic"] if idle else [])])


def told_split(split: Split) -> str:
    """Return in words which variant gets which share, such as `champion v3 95%, canary v4 5%`."""
    shares = shares_of(split)
    return ", ".join(f"{name} v{split['variants'][name]} {share:.4g}%" for name, share in shares.items())


def shares_of(split: Split) -> dict[str, float]:
    """Return each variant's share of the traffic in percent, in the order of the variants."""
    shares = dict.fromkeys(split["variants"], 0.0)
    start = 0.0
    for end, name in split["segments"]:
        shares[name] += 100.0 * (end - start)
        start = end
    return shares

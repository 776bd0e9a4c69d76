"""The table that the router gets: of each model the champion, which has the traffic, and the candidate on trial."""

from collections.abc import Iterable

from forge_core.deployment.routing import State

Table = dict[str, dict[str, str]]


def variant_name(model: str, version: str) -> str:
    """Return the name of the Serve application that serves a version."""
    return f"variant-{model}-v{version}"


def desired_table(state: State, live: Table, trying: str | None) -> Table:
    """Return what the router should hold: all champions, and the candidates that are tried or held already."""
    table: Table = {}
    for model, entry in state["models"].items():
        row = {role: entry[role] for role in ("champion", "candidate") if entry.get(role)}
        if model != trying and row.get("candidate") != live.get(model, {}).get("candidate"):
            row.pop("candidate", None)
        if row:
            table[model] = row
    return table


def held_versions(table: Table) -> set[tuple[str, str]]:
    """Return every (model, version) of a table, champions and candidates."""
    return {(model, version) for model, row in table.items() for version in row.values()}


def names_of(versions: Iterable[tuple[str, str]]) -> str:
    """Return the applications of versions, as people read them."""
    return ", ".join(variant_name(*v) for v in sorted(versions))


def told_table(table: Table) -> str:
    """Return in words where the traffic goes and what is held without any."""
    champions = {(model, row["champion"]) for model, row in table.items() if "champion" in row}
    candidates = held_versions(table) - champions
    told = f"routing traffic to {names_of(champions) or 'no model'}"
    return told + (f"; holding {names_of(candidates)} for trial" if candidates else "")

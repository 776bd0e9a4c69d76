"""A model's traffic shared out or copied: every change of the desired state that a rollout or an experiment makes.

A model has at most one split, and whose it is stands in its id. Each change is committed together with the event that
tells why, or not at all; `ServeClient.reconcile` brings it to the routers, all of it at once.
"""

import math

from forge_core.deployment.routing import Entry, read_state, update_entry
from forge_core.deployment.routing_table import Shadow, Split
from forge_core.deployment.stages import History
from forge_core.errors import ConfigurationError, Conflict, ModelError, ModelNotFound
from forge_core.ledger import Also, Event, Ledger

_LONGEST_OVERRIDES = 1000


def put_split(
    ledger: Ledger,
    model: str,
    split: Split,
    *,
    event: Event | None = None,
    expected: str | None = None,
    also: Also | None = None,
) -> int:
    """Share a model's traffic out, in the place of an earlier split of the same id; return the state's revision.

    Every version that it names must be mirrored before (`mirror.mirror_version`). The same split again changes nothing.

    Parameters
    ----------
    event : Event, optional
        Why; committed with the change. By default `split_changed` by nobody in particular.
    expected : str, optional
        The id of the split that must be there; by default the same one, or none.
    also : callable, optional
        Writes more into the ledger within the same transaction.

    Raises
    ------
    ConfigurationError
        When the segments do not cover [0, 1), or name a variant that is not there.
    ModelNotFound
        When the model has no champion, which answers where a variant cannot.
    ModelError
        When a version was refused.
    Conflict
        When the model has a split of another id, or copies of its traffic go to a version that is being rolled out.
    """
    plain = checked_split(split)

    def change(entry: Entry, history: History) -> tuple[Entry, Event] | None:
        _check_owner(model, plain["id"], entry)
        if expected is not None and entry.get("split", {}).get("id") != expected:
            raise Conflict(f"expected the split {expected!r} on {model!r}, found none; somebody ended it meanwhile")
        _check_versions(model, set(plain["variants"].values()), entry, history)
        if entry.get("split") == plain:
            return None
        kept = {name: value for name, value in entry.items() if name != "shadow" or not _of_rollout(plain)}
        return {**kept, "split": plain}, event or _event("split_changed", model, plain["id"])

    return update_entry(ledger, model, change, also)


def drop_split(ledger: Ledger, model: str, id: str, *, event: Event | None = None) -> int:
    """Give all traffic back to the champion and return the state's revision; without that split it changes nothing."""

    def change(entry: Entry, history: History) -> tuple[Entry, Event] | None:
        if entry.get("split", {}).get("id") != id:
            return None
        kept = {name: value for name, value in entry.items() if name != "split"}
        return kept, event or _event("split_dropped", model, id)

    return update_entry(ledger, model, change)


def put_shadow(
    ledger: Ledger, model: str, shadow: Shadow, *, event: Event | None = None, also: Also | None = None
) -> int:
    """Send copies of the champion's traffic to a version and return the state's revision; as `put_split` otherwise.

    Raises
    ------
    ConfigurationError
        When the share is not in (0, 1].
    ModelNotFound
        When the model has no champion.
    ModelError
        When the version was refused.
    Conflict
        When copies go to another version, or a split shares the traffic out.
    """
    share = float(shadow["share"])
    if not 0 < share <= 1:
        raise ConfigurationError(f"expected a shadow's share above 0 and at most 1, found {share:g}")
    plain: Shadow = {"version": str(shadow["version"]), "share": share}

    def change(entry: Entry, history: History) -> tuple[Entry, Event] | None:
        other = entry.get("shadow", plain)["version"]
        if other != plain["version"]:
            raise Conflict(f"copies of {model!r}'s traffic go to version {other} already; drop that shadow first")
        if "split" in entry:
            raise Conflict(f"the traffic of {model!r} is shared out by {entry['split']['id']!r}; end that first")
        _check_versions(model, {plain["version"]}, entry, history)
        if entry.get("shadow") == plain:
            return None
        return {**entry, "shadow": plain}, event or _event("shadow_changed", model, plain["version"])

    return update_entry(ledger, model, change, also)


def drop_shadow(ledger: Ledger, model: str, version: str, *, event: Event | None = None) -> int:
    """Send no more copies to a version and return the state's revision; where none go, it changes nothing."""

    def change(entry: Entry, history: History) -> tuple[Entry, Event] | None:
        if entry.get("shadow", {}).get("version") != version:
            return None
        kept = {name: value for name, value in entry.items() if name != "shadow"}
        return kept, event or _event("shadow_dropped", model, version)

    return update_entry(ledger, model, change)


def read_split(ledger: Ledger, model: str) -> Split | None:
    """Return how a model's traffic is shared out, or None where the champion has all of it."""
    split: Split | None = read_state(ledger)[1]["models"].get(model, {}).get("split")
    return split


def checked_split(split: Split) -> Split:
    """Return a split as plain JSON.

    Raises
    ------
    ConfigurationError
        When the segments do not cover [0, 1) in ascending order, or a name has no version.
    """
    variants = {str(name): str(version) for name, version in split["variants"].items()}
    segments = [(float(end), str(name)) for end, name in split["segments"]]
    overrides = {str(key): str(name) for key, name in split.get("overrides", {}).items()}
    ends = [0.0, *(end for end, _ in segments)]
    if any(not math.isfinite(end) for end in ends) or ends != sorted(set(ends)) or ends[-1] != 1.0:
        raise ConfigurationError(f"expected segments that end in ascending order, the last at 1, found {segments}")
    if unknown := sorted({*(name for _, name in segments), *overrides.values()} - variants.keys()):
        raise ConfigurationError(f"expected the variants {', '.join(variants)}, found {', '.join(unknown)}")
    if len(overrides) > _LONGEST_OVERRIDES:
        raise ConfigurationError(f"expected at most {_LONGEST_OVERRIDES} overrides, found {len(overrides)}")
    plain: Split = {
        "id": str(split["id"]),
        "salt": str(split["salt"]),
        "key": split["key"],
        "variants": variants,
        # Lists, because that is what comes back from JSON.
        "segments": [[end, name] for end, name in segments],  # type: ignore[misc]
    }
    if overrides:
        plain["overrides"] = overrides
    return plain


def check_unsplit(ledger: Ledger, model: str) -> None:
    """Raise Conflict, naming whose it is, where a model's traffic is shared out or copied."""
    entry = read_state(ledger)[1]["models"].get(model, {})
    _check_owner(model, None, entry)


def _check_owner(model: str, id: str | None, entry: Entry) -> None:
    found = entry.get("split", {}).get("id")
    if found not in (None, id):
        raise Conflict(
            f"the traffic of {model!r} is shared out by {found!r} already; end that first, or wait for it",
            context={"model": model, "split": found},
        )
    shadow = entry.get("shadow", {}).get("version")
    if shadow is not None and shadow == entry.get("candidate") and not str(id).startswith("rollout:"):
        raise Conflict(
            f"version {shadow} of {model!r} is being rolled out, in shadow so far; abort that first, or wait for it",
            context={"model": model, "split": f"rollout:{shadow}"},
        )


def _check_versions(model: str, versions: set[str], entry: Entry, history: History) -> None:
    if not entry.get("champion"):
        raise ModelNotFound(f"model {model!r} has no champion whose traffic could be shared; deploy a version first")
    for version in sorted(versions):
        if history.stage(version) == "refused":
            raise ModelError(
                f"version {version} of {model!r} was refused ({history.reasons.get(version, 'no reason')}); "
                "it gets no traffic"
            )


def _of_rollout(split: Split) -> bool:
    return split["id"].startswith("rollout:")


def _event(kind: str, model: str, what: str) -> Event:
    return Event(kind, model, None, "splits", what)

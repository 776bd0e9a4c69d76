"""Step results by content: the same inputs and the same code give the stored answer instead of the work."""

import hashlib
import json
from dataclasses import asdict, is_dataclass
from typing import Any

from prefect.cache_policies import NO_CACHE, CacheKeyFnPolicy
from prefect.tasks import exponential_backoff

from forge_core.data.loaders import source_fingerprint
from forge_core.errors import ServiceUnavailable
from forge_core.training.lineage import code_hash


def _key(context: Any, parameters: dict[str, Any]) -> str | None:
    # What a source holds is part of the key, so that a changed file is read again.
    fingerprint = source_fingerprint(parameters["source"]) if "source" in parameters else ""
    if fingerprint is None:  # nobody can tell whether a database's rows changed: read them again
        return None
    text = json.dumps([context.task.name, parameters, fingerprint, code_hash()], sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return value.model_dump() if hasattr(value, "model_dump") else str(value)


def _unavailable(task: Any, run: Any, state: Any) -> bool:
    """Retry only what can get better by waiting."""
    try:
        state.result()
    except ServiceUnavailable:
        return True
    except Exception:
        return False
    return False


BY_CONTENT = CacheKeyFnPolicy(cache_key_fn=_key)

# Every task: waits for servers that are away; answers are JSON, never pickles.
PATIENT: dict[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": exponential_backoff(backoff_factor=2),
    "retry_condition_fn": _unavailable,
    "persist_result": True,
    "result_serializer": "json",
}
CACHED: dict[str, Any] = {**PATIENT, "cache_policy": BY_CONTENT}
REPEATED: dict[str, Any] = {**PATIENT, "cache_policy": NO_CACHE}

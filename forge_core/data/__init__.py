"""The data room: rows come in, and leave as a dataset version that can be trained on.

A source address becomes a frame (`loaders`, with the demo's `flights` and the generated `sample`); the frame is
held against a contract (`contracts`), which sets bad rows aside and says why; the good rows are kept under an
id that is a hash of what they contain (`versions`), split before anything is fitted (`splits`), and turned into
numbers by features that are fitted on the training part only (`feature_engineering`).
"""

import importlib
from typing import Any

_HOMES = {
    "get_data_loader": "forge_core.data.loaders",
    "get_feature_engineer": "forge_core.data.feature_engineering",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'forge_core.data' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)

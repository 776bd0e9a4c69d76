"""MLOps-Forge: from a table of data to a model that is served, watched and corrected by itself.

Importing this package costs nothing: each public name is loaded from its room when first used.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "ABTestManager": "forge_core.experiments.ab_testing",
    "AutomaticRetrainingTrigger": "forge_core.monitoring.drift_detection",
    "FeatureDriftDetector": "forge_core.monitoring.drift_detection",
    "ForgeError": "forge_core.errors",
    "Ledger": "forge_core.ledger",
    "Settings": "forge_core.settings",
    "Storage": "forge_core.storage",
    "get_ab_test_manager": "forge_core.experiments.ab_testing",
    "get_data_loader": "forge_core.data.loaders",
    "get_feature_engineer": "forge_core.data.feature_engineering",
    "get_model_trainer": "forge_core.models.model_trainer",
    "get_settings": "forge_core.settings",
    "load_policy": "forge_core.policy",
    "load_version": "forge_core.tracking.registry",
    "plan_experiment": "forge_core.experiments.planning",
}

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'forge_core' has no attribute {name!r}; it offers {', '.join(sorted(_HOMES))}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__

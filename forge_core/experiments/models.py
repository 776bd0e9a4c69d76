"""Variants as models: objects of this process, and registered versions that are loaded when first asked for."""

import hashlib
import logging
import pickle
import re
from collections.abc import Iterator, Mapping
from typing import Any

from forge_core.errors import ConfigurationError, ModelNotFound
from forge_core.experiments.definition import Definition, Variant

logger = logging.getLogger(__name__)

_URI = re.compile(r"models:/(?P<model>[^/@]+)(?:[/@](?P<which>[^/@]+))?\Z")


def as_variant(model: Any, tracking_uri: str | None = None) -> Variant:
    """Return what the ledger keeps of a model: a registered version's name and number, or an object's type and hash.

    Parameters
    ----------
    model : object
        `"models:/flights/3"`, `"models:/flights@champion"` (looked up now: an alias may move), a `Variant`, or a model.

    Raises
    ------
    ConfigurationError
        For a text that is no such address.
    ModelNotFound
        For an alias that points nowhere.
    """
    if isinstance(model, Variant):
        return model
    if not isinstance(model, str):
        return Variant(model=type(model).__qualname__, version=None, fingerprint=fingerprint(model))
    found = _URI.match(model)
    if found is None:
        raise ConfigurationError(
            f"expected a model or an address such as 'models:/flights/3' or 'models:/flights@champion', "
            f"found {model[:80]!r}"
        )
    name, which = found["model"], found["which"] or "champion"
    if not which.isdigit():
        from forge_core.settings import get_settings
        from forge_core.tracking.registry import Registry

        which = Registry(tracking_uri or get_settings().mlflow_url).resolve(name, which).version
    return Variant(model=name, version=which, fingerprint=None)


def fingerprint(model: Any) -> str | None:
    """Return a hash of an object's content, equal for equal models; None for what cannot be hashed."""
    import joblib

    try:
        return joblib.hash(model, hash_name="sha1")
    except (pickle.PicklingError, TypeError, AttributeError, ValueError) as error:
        logger.info("a variant has no fingerprint: %s", error)
        if not hasattr(model, "__qualname__"):
            return None
        name = f"{model.__module__}.{model.__qualname__}"
        return hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()


class ModelVariants(Mapping[str, Any]):
    """The models of an experiment by variant."""

    def __init__(self, definition: Definition, tracking_uri: str | None = None) -> None:
        self.definition, self.tracking_uri = definition, tracking_uri
        self._loaded: dict[str, Any] = {}

    def keep(self, models: Mapping[str, Any]) -> None:
        """Keep the objects among these models; the experiment was created, here, with them."""
        self._loaded |= {name: model for name, model in models.items() if not isinstance(model, str | Variant)}

    def __getitem__(self, name: str) -> Any:
        """Return a variant's model.

        Raises
        ------
        ModelNotFound
            For an unknown variant, an object of another process, and a version that is not in the registry any more.
        """
        if name in self._loaded:
            return self._loaded[name]
        variant = self.definition.variants.get(name)
        if variant is None:
            known = ", ".join(self.definition.variants)
            raise ModelNotFound(f"experiment {self.definition.id!r} has no variant {name!r}; variants: {known}")
        if variant.version is None:
            raise ModelNotFound(
                f"variant {name!r} of {self.definition.id!r} is an object ({variant.told}) of the process that created "
                "the experiment; create it here too, with the same models, or use registered versions"
            )
        from forge_core.tracking.registry import load_version

        try:
            self._loaded[name] = load_version(variant.told, tracking_uri=self.tracking_uri)
        except ModelNotFound as error:
            raise ModelNotFound(
                f"variant {name!r} of {self.definition.id!r} is {variant.told}, which is not there any more ({error}); "
                "what was recorded stays: stop the experiment, or go on without this variant in a new one"
            ) from error
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.definition.variants)

    def __len__(self) -> int:
        return len(self.definition.variants)

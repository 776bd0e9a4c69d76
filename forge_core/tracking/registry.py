"""The model registry on MLflow: versions registered whole, found by alias, downloaded and checked.

A version is an MLflow LoggedModel whose folder is both a valid MLflow model (flavour `sklearn`, skops
format) and our version folder with all its parts. It becomes a registered version only after every file
has been uploaded, so nothing half-registered can be found.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forge_core.errors import ModelError, ModelNotFound
from forge_core.models.version import VersionFolder
from forge_core.tracking.mlmodel import write_mlmodel
from forge_core.tracking.model_card import model_card
from forge_core.tracking.names import check_alias, check_model_name, value_that_fits
from forge_core.tracking.server import translated

__all__ = ["CHALLENGER", "CHAMPION", "PREVIOUS", "RegisteredVersion", "Registry", "load_version", "write_mlmodel"]

logger = logging.getLogger(__name__)

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
_CANDIDATE, _GATE = "forge.candidate", "forge.gate"
_PROTECTED = ("protected", "forge.protected")
_LONGEST_DESCRIPTION = 5000  # of MLflow


@dataclass(frozen=True)
class RegisteredVersion:
    """A version's name, number, run and tags."""

    model: str
    version: str
    run_id: str
    source: str
    tags: dict[str, str]

    @property
    def passed_gate(self) -> bool:
        """Whether the gate let it pass."""
        return self.tags.get(_GATE) == "passed"


class Registry:
    """Versions of models on one MLflow server.

    Parameters
    ----------
    tracking_uri : str
        The MLflow server's URL.
    """

    def __init__(self, tracking_uri: str) -> None:
        from mlflow import MlflowClient

        self.tracking_uri = tracking_uri
        self.client = MlflowClient(tracking_uri, tracking_uri)

    def register(
        self, model: str, folder: Path, *, run_id: str, candidate: str, gate: str, tags: Mapping[str, str] | None = None
    ) -> RegisteredVersion:
        """Upload a complete version folder and register it; the same candidate is registered once.

        Parameters
        ----------
        folder : Path
            A folder written by `write_parts`, with MLflow's `MLmodel` beside the parts.
        candidate : str
            The candidate's content address; the key that makes this step repeatable.
        gate : {"passed", "refused"}
            What the gate said, kept as a tag.

        Raises
        ------
        ConfigurationError
            For a model name that cannot be one.
        IncompleteVersion
            When the folder lacks a part.
        """
        from mlflow.exceptions import MlflowException

        check_model_name(model)
        card = model_card(model, VersionFolder.open(folder))
        (folder / "card.md").write_text(card)
        with self._translated():
            try:
                self.client.create_registered_model(model)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            if found := self.by_candidate(model, candidate):
                return found
            experiment_id = self.client.get_run(run_id).info.experiment_id
            logged = self.client.create_logged_model(
                experiment_id, name=model, source_run_id=run_id, tags={_CANDIDATE: candidate}, model_type="forge"
            )
            self.client.log_model_artifacts(logged.model_id, str(folder))
            self.client.finalize_logged_model(logged.model_id, "READY")
            made = self.client.create_model_version(
                model,
                source=f"models:/{logged.model_id}",
                run_id=run_id,
                model_id=logged.model_id,
                tags={**(tags or {}), _CANDIDATE: candidate, _GATE: gate},
                description=value_that_fits(card, _LONGEST_DESCRIPTION),
            )
        logger.info("registered model=%s version=%s gate=%s", model, made.version, gate)
        return _registered(made)

    def resolve(self, model: str, which: str = CHAMPION) -> RegisteredVersion:
        """Return the version behind a number or an alias.

        Raises
        ------
        ModelNotFound
            Names the model, what was asked for, and what exists.
        """
        from mlflow.exceptions import MlflowException

        check_model_name(model)
        with self._translated():
            try:
                found = (
                    self.client.get_model_version(model, which)
                    if which.isdigit()
                    else self.client.get_model_version_by_alias(model, which)
                )
            except MlflowException as error:
                if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise
                known = [v.version for v in self.versions(model)]
                raise ModelNotFound(
                    f"no version or alias {which!r} of model {model!r}; "
                    f"versions: {', '.join(known) or 'none, train one'}"
                ) from None
        return _registered(found)

    def find(self, model: str, which: str = CHAMPION) -> RegisteredVersion | None:
        """Return the version behind a number or an alias, or None where there is none yet."""
        try:
            return self.resolve(model, which)
        except ModelNotFound:
            return None

    def versions(self, model: str) -> list[RegisteredVersion]:
        """Return every version of a model, oldest first."""
        check_model_name(model)
        with self._translated():
            found = self.client.search_model_versions(f"name = '{model}'")
        return sorted((_registered(v) for v in found), key=lambda v: int(v.version))

    @contextmanager
    def open(self, version: RegisteredVersion) -> Iterator[VersionFolder]:
        """Give a version's folder on the local disk, downloaded and checked, for as long as the context lasts."""
        import mlflow

        with tempfile.TemporaryDirectory(prefix="forge-version-") as path:
            with self._translated():
                local = mlflow.artifacts.download_artifacts(
                    artifact_uri=version.source, dst_path=path, tracking_uri=self.tracking_uri
                )
            yield VersionFolder.open(local)

    def set_alias(self, version: RegisteredVersion, alias: str) -> None:
        """Point an alias at a version; the champion it replaces becomes `previous`.

        Raises
        ------
        ConfigurationError
            For an alias that cannot be one.
        """
        check_alias(alias)
        with self._translated():
            if alias == CHAMPION:
                current = self.find(version.model, CHAMPION)
                if current and current.version != version.version:
                    self.client.set_registered_model_alias(version.model, PREVIOUS, current.version)
            self.client.set_registered_model_alias(version.model, alias, version.version)

    def remove_alias(self, model: str, alias: str) -> None:
        """Take an alias away from whatever version it points at."""
        with self._translated():
            self.client.delete_registered_model_alias(model, alias)

    def aliases(self, model: str) -> dict[str, str]:
        """Return each alias of a model and the version it points at."""
        with self._translated():
            return {alias: str(v) for alias, v in self.client.get_registered_model(model).aliases.items()}

    def set_tag(self, version: RegisteredVersion, key: str, value: str) -> None:
        """Set a tag of a version; `protected` = `true` keeps it from being deleted."""
        with self._translated():
            self.client.set_model_version_tag(version.model, version.version, key, value)

    def delete_version(self, model: str, which: str, *, serving: Mapping[str, Any] | None = None) -> RegisteredVersion:
        """Delete a version from the registry and return what it was; its run and files stay with MLflow.

        Parameters
        ----------
        serving : mapping, optional
            The desired serving state, `{"models": {name: {"champion": "3", "previous": "2"}}}`, splits and shadows too.

        Raises
        ------
        ModelError
            When an alias points at it, it is live or was before, or it is tagged `protected`; says which.
        """
        version = self.resolve(model, which)
        entry = (serving or {}).get("models", {}).get(model) or {}
        roles = [(role, v) for role, v in entry.items() if isinstance(v, str)]
        roles += [
            (f"variant {n!r} of {entry['split']['id']}", v)
            for n, v in entry.get("split", {}).get("variants", {}).items()
        ]
        roles += [("the shadow", entry["shadow"]["version"])] if "shadow" in entry else []
        reasons = [f"the alias {a!r} points at it" for a, v in self.aliases(model).items() if v == version.version]
        reasons += [f"it is {role} in the serving state" for role, v in roles if v == version.version]
        reasons += [f"its tag {t!r} is true" for t in _PROTECTED if version.tags.get(t, "").lower() == "true"]
        if reasons:
            raise ModelError(
                f"version {version.version} of {model!r} is not deleted: {' and '.join(reasons)}; "
                "deploy another version, or take that away first"
            )
        with self._translated():
            self.client.delete_model_version(model, version.version)
        return version

    def by_candidate(self, model: str, candidate: str) -> RegisteredVersion | None:
        """Return the version made from a candidate, or None."""
        return next((v for v in self.versions(model) if v.tags.get(_CANDIDATE) == candidate), None)

    def _translated(self) -> AbstractContextManager[None]:
        return translated(self.tracking_uri)


def load_version(reference: str, *, tracking_uri: str | None = None) -> Any:
    """Return the pipeline of `models:/name@alias` or `models:/name/3` for use in a notebook.

    Examples
    --------
    `pipeline = load_version("models:/flights@champion"); pipeline.predict_proba(rows)`
    """
    from forge_core.settings import get_settings

    model, _, which = reference.removeprefix("models:/").replace("@", "/").partition("/")
    registry = Registry(tracking_uri or get_settings().mlflow_url)
    with registry.open(registry.resolve(model, which or CHAMPION)) as folder:
        return folder.pipeline


def _registered(found: Any) -> RegisteredVersion:
    return RegisteredVersion(found.name, str(found.version), found.run_id, found.source, dict(found.tags))

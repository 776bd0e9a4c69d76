"""The model registry on MLflow: versions registered whole, found by alias, downloaded and checked.

A version is an MLflow LoggedModel whose folder is both a valid MLflow model (flavour `sklearn`, skops
format) and our version folder with all its parts. It becomes a registered version only after every file
has been uploaded, so nothing half-registered can be found.
"""

import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forge_core.errors import ModelNotFound, ServiceUnavailable
from forge_core.models.version import TRUSTED_TYPES, VersionFolder

logger = logging.getLogger(__name__)

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
_CANDIDATE, _GATE = "forge.candidate", "forge.gate"

# Named, or MLflow starts a process that loads the model to find out (16 s).
_REQUIREMENTS = ["mlops-forge", "scikit-learn", "skops", "pandas"]


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
        """
        from mlflow.exceptions import MlflowException

        VersionFolder.open(folder)
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
        """Point an alias at a version; the champion it replaces becomes `previous`."""
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

    def by_candidate(self, model: str, candidate: str) -> RegisteredVersion | None:
        """Return the version made from a candidate, or None."""
        return next((v for v in self.versions(model) if v.tags.get(_CANDIDATE) == candidate), None)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        from mlflow.exceptions import MlflowException
        from requests.exceptions import RequestException

        try:
            yield
        except RequestException as error:
            raise unreachable(self.tracking_uri, error) from error
        except MlflowException as error:
            if "Max retries exceeded" in str(error) or "Connection refused" in str(error):
                raise unreachable(self.tracking_uri, error) from error
            raise


def unreachable(tracking_uri: str, error: Exception) -> ServiceUnavailable:
    """Return the error that says where MLflow was looked for and how to start it."""
    return ServiceUnavailable(
        f"expected MLflow at {tracking_uri}, found: {str(error)[:200]}; "
        "start it with `make up` or set MLFLOW_TRACKING_URI"
    )


def write_mlmodel(folder: Path, pipeline: Any, example: Mapping[str, Any]) -> None:
    """Make a folder a valid MLflow model (flavours `sklearn` and `python_function`), with signature and example."""
    import mlflow.sklearn
    import pandas as pd
    from mlflow.models import infer_signature

    rows = pd.DataFrame([example])
    numbers = rows.select_dtypes("number").columns
    rows[numbers] = rows[numbers].astype(float)
    with tempfile.TemporaryDirectory() as path:
        made = Path(path) / "model"
        mlflow.sklearn.save_model(
            pipeline,
            str(made),
            serialization_format=mlflow.sklearn.SERIALIZATION_FORMAT_SKOPS,
            skops_trusted_types=sorted(TRUSTED_TYPES),
            signature=infer_signature(rows, pipeline.predict(rows)),
            pip_requirements=_REQUIREMENTS,
        )
        for file in made.iterdir():
            if not (folder / file.name).exists():  # model.skops is one of our parts already
                shutil.copy(file, folder)


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

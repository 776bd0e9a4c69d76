"""Where things are on this machine: one class, read from the environment and `.env`.

Only doors read settings (command lines, flows, the Serve builder, the `get_*` functions); whatever
lies deeper takes plain arguments. Variables of MLflow, Prefect, Ray and AWS keep their own names
and owners; MLFLOW_TRACKING_URI is read here too, because our own clients need it.
"""

from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Every setting of MLOps-Forge, with its unit and default."""

    model_config = SettingsConfigDict(env_prefix="FORGE_", env_file=".env", extra="ignore", populate_by_name=True)

    home: Path = Field(Path(".forge"), description="Folder for all state: databases, artifacts, storage, logs.")
    profile: Literal["local", "compose", "cluster"] = Field(
        "local", description="`local` trusts callers on 127.0.0.1; `cluster` nobody without a key."
    )
    host: str = Field("127.0.0.1", description="Address that our HTTP servers listen on.")
    keyless: Literal["local", "file", "all"] = Field(
        "local",
        description="Who needs no key: `local` this machine, `file` callers of one MODEL_PATH, `all` whoever reaches "
        "the port (publish it on 127.0.0.1). The profile `cluster` overrules it.",
    )
    api_address: str = Field(
        "", description="URL where our own calls reach the prediction API; empty: FORGE_HOST and FORGE_API_PORT."
    )
    dashboard_address: str = Field(
        "", description="URL where our own calls reach Ray's dashboard; empty: FORGE_HOST and FORGE_DASHBOARD_PORT."
    )
    api_port: int = Field(8000, ge=1, le=65535, description="Port of the prediction API (Ray Serve).")
    prefect_port: int = Field(4200, ge=1, le=65535, description="Port of the local Prefect server.")
    mlflow_port: int = Field(5000, ge=1, le=65535, description="Port of the local MLflow server.")
    ray_port: int = Field(6379, ge=1, le=65535, description="Port of the local Ray head (GCS), outside 10002-19999.")
    dashboard_port: int = Field(8265, ge=1, le=65535, description="Port of Ray's dashboard and its Serve REST API.")
    haproxy_metrics_port: int = Field(9101, ge=1, le=65535, description="Port of the ingress proxy's own metrics.")
    haproxy_stats_port: int = Field(8404, ge=1, le=65535, description="Port of the ingress proxy's statistics page.")
    startup_timeout: float = Field(120.0, gt=0, description="Seconds that `make up` waits for each server.")
    model: str = Field("flights", description="Model that /predict and /model/info serve.")
    model_path: str = Field(
        "",
        validation_alias=AliasChoices("MODEL_PATH", "model_path"),
        description="A model file that `python -m serve_app` serves without a registry; empty: none.",
    )
    allow_pickle: bool = Field(False, description="Let MODEL_PATH be a .joblib file, whose loading runs its code.")
    api_key: str = Field("", description="Key that our own calls to the prediction API show; empty: none.")
    policy_file: Path = Field(Path("deployments/policy.yaml"), description="Gates, thresholds and limits, per model.")
    catalogue_file: Path = Field(
        Path("deployments/catalogue.yaml"), description="Names of data sources; the file may be absent."
    )
    rayservice: str = Field("", description="KubeRay service that runs Serve, in a pod's own namespace; empty: none.")
    serve_file: Path = Field(Path("deployments/serve.yaml"), description="Pattern of the Serve applications.")
    storage_url: str = Field("", description="fsspec URL of datasets, windows and logs; empty: FORGE_HOME/storage.")
    ledger_url: str = Field("", description="SQLAlchemy URL of the ledger; empty: SQLite file in FORGE_HOME.")
    tracking_uri: str = Field(
        "",
        validation_alias=AliasChoices("MLFLOW_TRACKING_URI", "tracking_uri"),
        description="MLflow server; empty: the local one on FORGE_MLFLOW_PORT.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Level of our own logs.")

    @property
    def api_url(self) -> str:
        """Base URL of the prediction API, for our own calls."""
        return self.api_address.rstrip("/") or f"http://{self._reached}:{self.api_port}"

    @property
    def open_without_key(self) -> bool:
        """Whether the prediction API lets callers in without a key: this machine's, or all where that is said."""
        if self.profile == "local" and self.host in ("127.0.0.1", "localhost", "::1"):
            return True
        return self.keyless == "all" and self.profile != "cluster"

    @property
    def open_file_without_key(self) -> bool:
        """Whether the API of one MODEL_PATH lets callers in without a key."""
        return self.open_without_key or (self.keyless == "file" and self.profile != "cluster")

    @property
    def prefect_url(self) -> str:
        """Base URL of the local Prefect server (its API lies below /api)."""
        return f"http://{self._reached}:{self.prefect_port}"

    @property
    def mlflow_url(self) -> str:
        """URL of the MLflow server that tracks runs and holds the registry."""
        return self.tracking_uri or f"http://{self._reached}:{self.mlflow_port}"

    @property
    def dashboard_url(self) -> str:
        """Base URL of Ray's dashboard, where Serve's configuration is PUT."""
        return self.dashboard_address.rstrip("/") or f"http://{self._reached}:{self.dashboard_port}"

    @property
    def storage(self) -> str:
        """fsspec URL of the storage root, without a trailing slash."""
        return (self.storage_url or (self.home.resolve() / "storage").as_posix()).rstrip("/")

    @property
    def ledger(self) -> str:
        """SQLAlchemy URL of the ledger."""
        return self.ledger_url or f"sqlite:///{(self.home.resolve() / 'ledger.db').as_posix()}"

    @property
    def _reached(self) -> str:
        """Where this machine reaches its own servers: what listens on every address is no address to call."""
        return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)


@lru_cache
def get_settings() -> Settings:
    """Return the process's settings, read once."""
    return Settings()

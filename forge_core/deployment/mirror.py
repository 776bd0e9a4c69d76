"""A live version's folder, copied from the registry to the storage URL for the replicas.

Replicas then start without the MLflow client (seconds and hundreds of megabytes each) and keep starting
while the tracking server is away. The copy is checked against its own index of hashes when opened.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from forge_core.errors import ModelNotFound
from forge_core.models.version import VersionFolder
from forge_core.storage import Storage


def mirror_version(storage: Storage, model: str, version: str, folder: VersionFolder) -> None:
    """Copy a version's parts below `versions/{model}/{version}/`, the index of hashes last."""
    names = sorted(p.name for p in folder.path.iterdir() if p.is_file() and p.name != "parts.json")
    for name in [*names, "parts.json"]:
        storage.write_bytes(_key(model, version, name), (folder.path / name).read_bytes())


@contextmanager
def mirrored_version(storage: Storage, model: str, version: str) -> Iterator[VersionFolder]:
    """Give a mirrored version's folder on the local disk, for as long as the context lasts.

    Raises
    ------
    ModelNotFound
        When this version was never mirrored.
    """
    keys = storage.list(_key(model, version, "."))
    if _key(model, version, "parts.json") not in keys:
        raise ModelNotFound(f"version {version} of {model!r} is not at {storage.url}; deploy it first")
    with tempfile.TemporaryDirectory(prefix=f"forge-{model}-v{version}-") as path:
        for key in keys:
            (Path(path) / Path(key).name).write_bytes(storage.read_bytes(key))
        yield VersionFolder.open(path)


def _key(model: str, version: str, name: str) -> str:
    return f"versions/{model}/{version}/{name}".removesuffix("/.")

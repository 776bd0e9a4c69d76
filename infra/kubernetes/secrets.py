"""Fresh keys and passwords as Kubernetes Secrets, for the first deployment: `python -m infra.kubernetes secrets`.

Printed for `kubectl create -f -`, which refuses what exists already, so that no key is ever replaced by chance.
"""

import secrets
from collections.abc import Mapping

from forge_core.deployment.ray_pods import Manifest
from forge_core.keys import new_secret
from infra.kubernetes.generated import NAMESPACE

# What is made, by Secret and key. A cloud's database has a password of its own, which is given instead.
GENERATED = {
    "forge-environment": ("FORGE_API_KEY", "PGPASSWORD"),
    "forge-ray-token": ("auth_token",),
}
# Of the object store inside the cluster, which the overlay `local` brings.
LOCAL = {"forge-environment": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}


def secret_manifests(*, local: bool, given: Mapping[str, str]) -> list[Manifest]:
    """Return the Secrets, each value of 256 random bits.

    Parameters
    ----------
    local : bool
        Whether the object store of the overlay `local` needs keys too.
    given : mapping
        Values that exist already, such as PGPASSWORD of a cloud's database.
    """
    made = []
    for name, keys in GENERATED.items():
        wanted = (*keys, *(LOCAL.get(name, ()) if local else ()))
        values = {key: given.get(key) or _fresh(key) for key in wanted}
        made.append(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": name, "namespace": NAMESPACE},
                "type": "Opaque",
                "stringData": values,
            }
        )
    return made


def _fresh(key: str) -> str:
    # The API's keys have their id inside.
    return new_secret() if key == "FORGE_API_KEY" else secrets.token_urlsafe(32)

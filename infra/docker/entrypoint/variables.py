"""What a container's processes are told: the stack's variables, under whatever the operator set."""

import os
from pathlib import Path

from forge_core.errors import ConfigurationError
from forge_core.settings import Settings
from infra.local.environment import child_environment, ensure_token, environment, token_path

# Read from the settings, which come from the same variables, with paths made absolute.
_OURS = ("FORGE_", "PYTHONPATH")
# Not given is an answer too: a flow starts a Ray of its own then, and a training is not tracked.
_ONLY_WHERE_GIVEN = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")


def take_variables(settings: Settings, *, new_token: bool = False) -> None:
    """Give this process, and what it starts, the stack's variables; one that is set already stays as it is.

    Parameters
    ----------
    settings : Settings
        Home and addresses.
    new_token : bool, default False
        Whether a token of Ray's is made where there is none: by who begins a cluster, for all its nodes.

    Raises
    ------
    ConfigurationError
        The home cannot be written, or a file of RAY_AUTH_TOKEN_PATH cannot be read.
    """
    home = settings.home.resolve()
    try:
        (home / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"expected a folder to write to in FORGE_HOME, found {home}: {error}") from error
    _take_token(settings, new_token)
    os.environ.update(_wanted(settings))


def member_variables(settings: Settings, member: str) -> dict[str, str]:
    """Return the whole environment of one process, with the marks by which it is found; see `take_variables`."""
    marked = {n: v for n, v in child_environment(settings, member).items() if n not in _ONLY_WHERE_GIVEN}
    return {**marked, **_wanted(settings), **{n: os.environ[n] for n in _ONLY_WHERE_GIVEN if os.environ.get(n)}}


def _wanted(settings: Settings) -> dict[str, str]:
    """Return the stack's variables as they are after what was given."""
    stack = {name: value for name, value in environment(settings).items() if name not in _ONLY_WHERE_GIVEN}
    return {n: v if n.startswith(_OURS) else os.environ.get(n) or v for n, v in stack.items()}


def _take_token(settings: Settings, new: bool) -> None:
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if os.environ.get("RAY_AUTH_TOKEN"):
        return
    if new:
        ensure_token(Path(path) if path else token_path(settings))
    if path:
        try:
            os.environ["RAY_AUTH_TOKEN"] = Path(path).read_text(encoding="ascii").strip()
        except OSError as error:
            raise ConfigurationError(f"expected Ray's token in RAY_AUTH_TOKEN_PATH, found {path}: {error}") from error

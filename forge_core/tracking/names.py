"""Names that MLflow and our folders can carry: what is allowed, and what becomes of the rest.

Models and aliases with other names are refused, because people type them. Parameters and metrics are made by
programs in the middle of a training, so there an odd name is changed to one that fits, and the change is told.
"""

import hashlib
import re

from forge_core.errors import ConfigurationError

# MLflow's own limits (mlflow.utils.validation).
LONGEST_KEY, LONGEST_VALUE, LONGEST_TAG = 250, 6000, 8000
_LONGEST_MODEL, _LONGEST_ALIAS = 128, 255
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_ALIAS = re.compile(r"[A-Za-z0-9_-]+")
_NOT_IN_KEYS = re.compile(r"[^\w.\-: /]", re.ASCII)


def check_model_name(name: str) -> str:
    """Return a model's name, which is also a folder, a Serve application and a part of URLs.

    Raises
    ------
    ConfigurationError
        For a name that is empty, too long or has other characters; says which are allowed.
    """
    if not isinstance(name, str) or len(name) > _LONGEST_MODEL or not _MODEL.fullmatch(name):
        raise ConfigurationError(
            f"expected a model name of 1 to {_LONGEST_MODEL} of the characters A-Z a-z 0-9 _ . - that starts with a "
            f"letter or a digit, found {_shown(name)}; choose another name"
        )
    return name


def check_alias(alias: str) -> str:
    """Return an alias.

    Raises
    ------
    ConfigurationError
        For other characters, a name that looks like a version (`7`, `v7`), and `latest`, which MLflow reserves.
    """
    if not isinstance(alias, str) or len(alias) > _LONGEST_ALIAS or not _ALIAS.fullmatch(alias):
        raise ConfigurationError(
            f"expected an alias of 1 to {_LONGEST_ALIAS} of the characters A-Z a-z 0-9 _ -, found {_shown(alias)}"
        )
    if alias.lower() == "latest" or re.fullmatch(r"[vV]?\d+", alias):
        raise ConfigurationError(
            f"expected an alias that cannot be taken for a version, found {alias!r}; numbers, v and a number, and "
            "`latest` are not allowed"
        )
    return alias


def key_that_fits(name: str) -> str:
    """Return the name under which MLflow takes a parameter, metric or tag: itself where it fits.

    Other characters become `_`, and what was changed ends with a short hash of the original, so that two names
    never meet in one.

    Examples
    --------
    >>> key_that_fits("loss/train")
    'loss/train'
    >>> key_that_fits("f1@5 (β=2)")
    'f1_5 ___2_-de96'
    """
    if not name:
        raise ConfigurationError("expected a name for a parameter, metric or tag, found an empty one")
    # Keys are paths for MLflow: `a//b`, `../a` and `/a` would lead elsewhere.
    parts = [part for part in _NOT_IN_KEYS.sub("_", name).split("/") if part not in ("", ".", "..")]
    clean = "/".join(parts)
    if clean == name and len(name) <= LONGEST_KEY:
        return name
    mark = "-" + hashlib.sha256(name.encode()).hexdigest()[:4]
    return clean[: LONGEST_KEY - len(mark)] + mark


def value_that_fits(value: str, longest: int = LONGEST_VALUE) -> str:
    """Return a text that MLflow takes whole: itself, or its beginning and how long all of it is."""
    if len(value) <= longest:
        return value
    end = f" … (cut: {len(value):,} characters in all)"
    return value[: longest - len(end)] + end


def _shown(name: object) -> str:
    text = repr(name)
    return text if len(text) <= 60 else f"{text[:57]}… ({len(str(name))} characters)"

"""A YAML file that gives sources names, so that nobody types addresses, and nobody reads passwords.

orders:
  address: postgresql://reader:${WAREHOUSE_PASSWORD}@warehouse/shop
  description: Every order since 2019, one row each.
  options: {table: sales.orders}
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from forge_core.errors import ConfigurationError

_NAME = re.compile(r"[^\s:/.*?\[\]\\]+")
_VARIABLE = re.compile(r"(?P<password>(?<=:))?\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)\}(?=(?P<at>@)?)")


class CatalogueEntry(BaseModel):
    """One named source.

    Attributes
    ----------
    address : str
        As `open_source` takes it; `${NAME}` stands for an environment variable (a password between `:` and `@`
        as it is, without percent signs).
    description : str
        What the rows are, for people.
    options : dict
        As `open_source` takes them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str
    description: str = ""
    options: dict[str, Any] = {}


def load_catalogue(path: Path) -> dict[str, CatalogueEntry]:
    """Return the named sources of a file; none where there is no file.

    Raises
    ------
    ConfigurationError
        When the file is not such YAML, or a name is no bare name.
    """
    if not path.is_file():
        return {}
    try:
        entries = TypeAdapter(dict[str, CatalogueEntry]).validate_python(yaml.safe_load(path.read_text("utf-8")) or {})
    except (yaml.YAMLError, UnicodeDecodeError, ValidationError) as error:
        raise ConfigurationError(
            f"expected names with an address, a description and options in {path}, found: {_told(error)}"
        ) from None
    if wrong := sorted(name for name in entries if not is_name(name)):
        raise ConfigurationError(
            f"expected names without space, dot, colon or slash in {path}, found {', '.join(wrong)}"
        )
    return entries


def find_entry(name: str, path: Path) -> CatalogueEntry:
    """Return the source of that name.

    Raises
    ------
    ConfigurationError
        When the catalogue has no such name, listing those it has.
    """
    entries = load_catalogue(path)
    if name not in entries:
        has = f"has {', '.join(sorted(entries))}" if entries else "is empty or not there"
        raise ConfigurationError(
            f"expected a source, found the bare name {name!r}, and the catalogue {path} {has}; add it there, or give "
            "an address (a file with its ending, flights:, sample:, …)"
        )
    return entries[name]


def fill_in(address: str, environment: Mapping[str, str] | None = None) -> str:
    """Return an address with its `${NAME}` replaced by the environment's values.

    Raises
    ------
    ConfigurationError
        Naming the variable that is not set.
    """
    values = os.environ if environment is None else environment

    def value(found: re.Match[str]) -> str:
        name = found["name"]
        if name not in values:
            raise ConfigurationError(f"the address {address} needs the environment variable {name}, which is not set")
        is_password = found["password"] is not None and found["at"] is not None
        return quote(values[name], safe="") if is_password else values[name]

    return _VARIABLE.sub(value, address)


def is_name(source: str) -> bool:
    """Tell whether a source is a bare name: nothing in it makes it a path, pattern or URL."""
    return _NAME.fullmatch(source) is not None


def _told(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False))[:300]
    return " ".join(str(error).split())[:300]

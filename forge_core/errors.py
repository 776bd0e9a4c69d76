"""What can go wrong, drawn once.

    ForgeError
    ├── DataError                 the rows are not what was promised
    │   ├── DataNotFound          no file, no table, no dataset version at this address
    │   ├── EmptyData             the source is there and holds no rows
    │   ├── UnreadableData        the source is there and cannot be read in its format
    │   ├── SchemaViolation       a column is missing, or has another type
    │   ├── TooManyBadRows        the contract's budget for bad rows is spent
    │   └── UnusableTarget        no target column, or a target nothing can be learnt from
    ├── ModelError
    │   ├── ModelNotFound         no model, version or alias of this name
    │   ├── ApprovalNeeded        a person has to approve this version before it goes live
    │   ├── IncompleteVersion     a registered version lacks a part, or a part was changed
    │   └── UntrustedModel        a file would run foreign code while it loads
    ├── MonitoringError
    │   └── NotEnoughSamples      too few rows to decide
    ├── ExperimentNotFound        no experiment of this id
    ├── ConfigurationError        a setting, policy or parameter that cannot be used
    ├── ServiceUnavailable        a server that we need does not answer
    └── Conflict                  someone else changed the same record first

Every message says what was expected, what was found and what to do. Errors cross process
borders (Ray and Prefect pickle them), so a constructor takes one message and keyword context.
"""

from typing import Any


class ForgeError(Exception):
    """The root of every error that MLOps-Forge raises on purpose.

    Parameters
    ----------
    message : str
        What was expected, what was found, what to do.
    context : dict, optional
        Facts for machines: column names, counts, addresses.
    """

    def __init__(self, message: str, *, context: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.context = context or {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), str(self), self.context)


def _rebuild(kind: type[ForgeError], message: str, context: dict[str, Any]) -> ForgeError:
    return kind(message, context=context)


class DataError(ForgeError):
    """The rows are not what was promised."""


class DataNotFound(DataError):
    """No file, table or dataset version at this address."""


class EmptyData(DataError):
    """The source exists and holds no rows."""


class UnreadableData(DataError):
    """The source exists and cannot be read in its format."""


class SchemaViolation(DataError):
    """A column is missing or has another type than the contract says."""


class TooManyBadRows(DataError):
    """More rows break the contract than its budget allows."""


class UnusableTarget(DataError):
    """There is no target column, or nothing can be learnt from it."""


class ModelError(ForgeError):
    """Something is wrong with a model or one of its versions."""


class ModelNotFound(ModelError):
    """No model, version or alias of this name."""


class ApprovalNeeded(ModelError):
    """The policy wants a person to approve this version before it goes live."""


class IncompleteVersion(ModelError):
    """A registered version lacks a part, or a part was changed after registration."""


class UntrustedModel(ModelError):
    """Loading this file would run code that came with it."""


class MonitoringError(ForgeError):
    """Watching cannot answer."""


class NotEnoughSamples(MonitoringError):
    """Too few rows to decide."""


class ExperimentNotFound(ForgeError):
    """No experiment of this id, or none that runs."""


class ConfigurationError(ForgeError):
    """A setting, policy or parameter that cannot be used."""


class ServiceUnavailable(ForgeError):
    """A server that we need does not answer."""


class Conflict(ForgeError):
    """Someone else changed the same record first; read it again and retry."""

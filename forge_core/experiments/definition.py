"""What an experiment is: variants, shares, metrics, and the rule by which it is judged, fixed before the first user.

Nothing of it can be changed afterwards: a rule chosen after a look at the data is no rule. The same definition again is
the same experiment; another one under the same id is refused, with the difference in words.
"""

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from forge_core.errors import ConfigurationError

CONVERSION = "conversion"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
# An alias may move while the experiment runs, so it takes a number.
_ADDRESS = re.compile(r"models:/(?P<model>[^/@]{1,128})/(?P<version>[0-9]{1,9})\Z")


def _a_name(text: str) -> str:
    if not _NAME.match(text):
        raise ValueError(
            f"expected 1 to 64 letters, digits, dots, dashes or underscores, a letter or digit first, found {text!r}"
        )
    return text


Name = Annotated[
    str, AfterValidator(_a_name), Field(json_schema_extra={"pattern": r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"})
]
Count = Annotated[int, Field(ge=1, le=10**9)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Metric(_Part):
    """What is measured on each user."""

    name: Name
    kind: Literal["conversion", "mean", "ratio"] = Field(
        "conversion", description="conversion: yes or no a user; mean: a number a user; ratio: sum over sum."
    )
    better: Literal["higher", "lower"] = "higher"
    per: Name | None = Field(None, description="ratio: the metric whose sum divides.")
    absent: Literal["left out", "zero"] = Field(
        "left out", description="mean: what a user without a value is. A conversion that is not there is a no."
    )
    max_harm: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0.0, description="Guard rail: how much worse than the control is borne, in the metric's own unit."
    )

    @model_validator(mode="after")
    def _complete(self) -> "Metric":
        if (self.kind == "ratio") != (self.per is not None):
            raise ValueError("a ratio needs `per`, the metric whose sum divides, and no other kind has it")
        return self

    @property
    def recorded(self) -> tuple[str, ...]:
        """Return the names under which values are recorded for this metric."""
        return (self.name,) if self.per is None else (self.name, self.per)


class Variant(_Part):
    """A registered version of a model, or an object of the process that created the experiment."""

    model: str = Field(min_length=1, max_length=128, description="Registered model, or an object's type.")
    version: str | None = Field(None, pattern=r"^[0-9]{1,9}$", description="Registered version; none: an object.")
    fingerprint: str | None = Field(None, max_length=64, description="Hash of an object's content.")

    @model_validator(mode="before")
    @classmethod
    def _from_address(cls, data: Any) -> Any:
        if not isinstance(data, str):
            return data
        found = _ADDRESS.match(data)
        if found is None:
            raise ValueError(f"expected a registered version such as 'models:/flights/3', found {data[:80]!r}")
        return found.groupdict()

    @property
    def told(self) -> str:
        """Return the variant as people read it."""
        if self.version is not None:
            return f"models:/{self.model}/{self.version}"
        return f"{self.model} object" + (f" {self.fingerprint[:12]}" if self.fingerprint else "")


class Definition(_Part):
    """An experiment as it is kept. Shares, alpha and the like are plain numbers in [0, 1]."""

    id: Name
    variants: dict[Name, Variant] = Field(min_length=2, max_length=20)
    traffic_allocation: dict[str, Finite] = Field(description="Variant -> share of the users; all add up to 1.")
    control: str = Field(
        default_factory=lambda fields: next(iter(fields.get("variants", ())), ""),
        description="Variant that the others are compared with; default the first one.",
    )
    primary: Metric = Field(Metric(name=CONVERSION), description="Metric that decides.")
    guard_rails: tuple[Metric, ...] = Field((), max_length=20, description="Metrics that must not get worse.")
    baseline: Finite | None = Field(None, description="Expected value of the primary metric under the control.")
    min_effect: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="Smallest difference to the control that matters, in the metric's own unit."
    )
    alpha: float = Field(0.05, gt=0, lt=0.5, description="Chance of a winner where there is none.")
    max_units: Count | None = Field(None, description="Users over all variants after which it ends; none: open.")
    looks: int = Field(20, ge=1, le=100, description="With max_units: how often it is looked at, evenly.")
    planned_units: Count | None = Field(None, description="Users a variant at which the test is sharpest.")
    window_hours: Annotated[float, Field(gt=0, le=24 * 366)] | None = Field(
        None, description="How long after the first exposure outcomes count; users count once it is over."
    )
    overrides: dict[str, str] = Field(
        default_factory=dict, max_length=1000, description="User -> variant, whatever the hash says; not judged."
    )
    live: bool = Field(
        False, description="The router gives the live traffic of the model to its versions; all variants are some."
    )
    description: str = Field("", max_length=10_000)

    @model_validator(mode="after")
    def _sound(self) -> "Definition":
        faults = [*self._faults_of_shares(), *self._faults_of_names(), *self._faults_of_plan()]
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _faults_of_shares(self) -> list[str]:
        known, shares = ", ".join(self.variants), self.traffic_allocation
        faults = [f"traffic_allocation: no variant {n!r}; variants: {known}" for n in shares if n not in self.variants]
        if absent := [n for n in self.variants if n not in shares]:
            faults.append(f"traffic_allocation: no share for {', '.join(absent)}; give each variant one")
        if outside := {n: s for n, s in shares.items() if not 0 <= s <= 1}:
            told = ", ".join(f"{n} {s:g}" for n, s in outside.items())
            faults.append(f"traffic_allocation: expected shares from 0 to 1, found {told}")
        elif abs((total := math.fsum(shares.values())) - 1) > 1e-9:
            faults.append(f"traffic_allocation: expected shares that add up to 1, found {total:.12g}")
        elif not absent and sum(s > 0 for s in shares.values()) < 2:
            faults.append("traffic_allocation: expected at least two variants with a share above 0")
        elif shares.get(self.control) == 0:
            faults.append(f"traffic_allocation: the control {self.control!r} needs a share above 0")
        return faults

    def _faults_of_names(self) -> list[str]:
        known = ", ".join(self.variants)
        faults = (
            ["live: expected versions of one registered model as variants"]
            if self.live and self.live_model is None
            else []
        )
        faults += [] if self.control in self.variants else [f"control: no variant {self.control!r}; variants: {known}"]
        faults += [
            f"overrides: no variant {variant!r} for {user[:40]!r}; variants: {known}"
            for user, variant in self.overrides.items()
            if variant not in self.variants
        ]
        names = [self.primary.name, *(metric.name for metric in self.guard_rails)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            faults.append(f"guard_rails: expected each metric once, found {', '.join(twice)} twice")
        return faults

    def _faults_of_plan(self) -> list[str]:
        if self.primary.kind != "conversion" or self.baseline is None:
            return []
        if not 0 < self.baseline < 1:
            return [f"baseline: expected a share of conversions between 0 and 1, found {self.baseline:g}"]
        end = self.baseline + (self.min_effect or 0) * (1 if self.primary.better == "higher" else -1)
        return [] if 0 < end < 1 else [f"min_effect: {self.min_effect:g} from {self.baseline:g} leaves 0 to 1"]

    @property
    def salt(self) -> str:
        """Return what makes this experiment's assignment independent of every other one's."""
        return f"experiment:{self.id}"

    @property
    def shares(self) -> dict[str, float]:
        """Return each variant's share, in the variants' order."""
        return {name: self.traffic_allocation[name] for name in self.variants}

    @property
    def treatments(self) -> list[str]:
        """Return the variants that are compared with the control."""
        return [name for name, share in self.shares.items() if name != self.control and share > 0]

    @property
    def metrics(self) -> dict[str, Metric]:
        """Return the metrics by every name under which values are recorded."""
        return {name: metric for metric in (*self.guard_rails, self.primary) for name in metric.recorded}

    @property
    def live_model(self) -> str | None:
        """Return the registered model whose versions all variants are, None for any other kind of experiment."""
        models = {variant.model for variant in self.variants.values() if variant.version is not None}
        alone = len(models) == 1 and all(v.version is not None for v in self.variants.values())
        return models.pop() if alone else None


def define(fields: Mapping[str, Any]) -> Definition:
    """Return a definition.

    Raises
    ------
    ConfigurationError
        Names everything that is wrong.
    """
    try:
        return Definition.model_validate(dict(fields))
    except ValidationError as error:
        faults = [
            {"field": ".".join(map(str, e["loc"])), "reason": e["msg"].removeprefix("Value error, ")}
            for e in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        told = "; ".join(f"{f['field']}: {f['reason']}" if f["field"] else f["reason"] for f in faults)
        raise ConfigurationError(
            f"experiment {str(fields.get('id'))[:80]!r} cannot be made: {told}", context={"faults": faults}
        ) from None


def differences(kept: Definition, given: Definition) -> list[str]:
    """Return in words where two definitions differ; a description may."""
    was, now = _told(kept), _told(given)
    return [
        f"{path} is {was.get(path, 'not there')} and was given as {now.get(path, 'not there')}"
        for path in [*was, *(path for path in now if path not in was)]
        if was.get(path) != now.get(path)
    ]


def _told(definition: Definition) -> dict[str, str]:
    fields: dict[str, Any] = {
        **{f"variants.{name}": variant.told for name, variant in definition.variants.items()},
        **{f"traffic_allocation.{name}": share for name, share in definition.traffic_allocation.items()},
        **{f"guard_rails.{metric.name}": _metric_told(metric) for metric in definition.guard_rails},
        **{f"overrides.{user}": variant for user, variant in definition.overrides.items()},
        "primary": _metric_told(definition.primary),
    }
    rest = set(Definition.model_fields) - {name.partition(".")[0] for name in fields}
    rest -= {"description", "guard_rails", "overrides"}
    fields |= {name: getattr(definition, name) for name in Definition.model_fields if name in rest}
    return {path: f"{value:g}" if isinstance(value, float) else str(value) for path, value in fields.items()}


def _metric_told(metric: Metric) -> str:
    fields = metric.model_dump(exclude={"name", "kind"}, exclude_defaults=True)
    return " ".join([metric.name, f"({metric.kind}"] + [f"{k} {v}" for k, v in fields.items()]) + ")"

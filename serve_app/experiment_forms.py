"""What callers send about experiments, as forms: every fault at once."""

from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from forge_core.experiments.definition import CONVERSION, Definition
from serve_app.bodies import faults_of

Form = TypeVar("Form", bound=BaseModel)

_MOST = 10_000


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class NewExperiment(Definition):
    """An experiment; `auto_start` starts it at once."""

    auto_start: bool = False

    @property
    def definition(self) -> Definition:
        """Return what is kept."""
        return Definition.model_validate(self.model_dump(exclude={"auto_start"}))


class StopRequest(_Form):
    """How an experiment is ended: who wins (by default whom the verdict names, if anybody), and why."""

    winner: str | None = Field(None, max_length=64)
    reason: str | None = Field(None, max_length=2000)


class Conversion(_Form):
    """A conversion: of a user, of a request (where users have no key), or of nobody in particular by variant."""

    user: str | None = Field(None, min_length=1, max_length=128, description="As in the request; keeps no copy.")
    request_id: str | None = Field(None, min_length=1, max_length=128, description="Of the prediction, instead.")
    variant: str | None = Field(None, min_length=1, max_length=64, description="Needed where nobody else is named.")
    key: str | None = Field(None, min_length=1, max_length=128, description="Tells several of one user apart.")


class Measurement(Conversion):
    """A value of a metric."""

    metric: str = Field(min_length=1, max_length=64)
    value: float = Field(allow_inf_nan=False, ge=-1e200, le=1e200)

    @property
    def is_conversion(self) -> bool:
        """Whether it is what `/conversions` records."""
        return self.metric == CONVERSION


class Conversions(_Form):
    """Many conversions."""

    conversions: list[Conversion] = Field(min_length=1, max_length=_MOST)


class Measurements(_Form):
    """Many values."""

    metrics: list[Measurement] = Field(min_length=1, max_length=_MOST)


def read_form(form: type[Form], data: Any) -> Form:
    """Return data as a form; raises NotTheForm with every fault."""
    try:
        # As JSON, where a list is what a tuple is made of, and nothing is read as what it is not.
        return TypeAdapter(form).validate_json(orjson.dumps(data), strict=True)
    except ValidationError as error:
        raise faults_of(error) from None

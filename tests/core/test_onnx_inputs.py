"""What a graph is given for one column is the same, to the last bit, however the column came."""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forge_core.models.onnx_inputs import filler

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
WHOLE = st.integers(-(2**63), 2**63 - 1)


class Input(NamedTuple):
    type: str
    shape: list[Any]


def filled(kind: str, values: Any) -> np.ndarray:
    return filler(Input(f"tensor({kind})", [None, 1])).from_values(values)


@pytest.mark.parametrize(
    ("values", "arrow"), [(TEXTS, pa.string()), (WHOLE, pa.int64()), (st.booleans(), pa.bool_())], ids=str
)
@given(data=st.data())
def test_an_arrow_array_fills_a_text_input_as_plain_values_do(values: Any, arrow: pa.DataType, data: Any) -> None:
    plain = data.draw(st.lists(st.none() | values, min_size=1, max_size=80))
    given_plain, given_arrow = filled("string", plain), filled("string", pa.array(plain, arrow))
    assert given_plain.shape == given_arrow.shape == (len(plain), 1)
    assert given_plain.dtype == given_arrow.dtype == object
    assert given_plain.tolist() == given_arrow.tolist()


@pytest.mark.parametrize(("values", "arrow"), [(WHOLE, pa.int64()), (st.booleans(), pa.bool_())], ids=str)
@given(data=st.data())
def test_an_arrow_array_fills_a_number_input_as_plain_values_do(values: Any, arrow: pa.DataType, data: Any) -> None:
    plain = data.draw(st.lists(st.none() | values, min_size=1, max_size=80))
    as_floats = [None if value is None else float(value) for value in plain]
    given_plain, given_arrow = filled("float", as_floats), filled("float", pa.array(plain, arrow))
    assert given_plain.shape == given_arrow.shape == (len(plain), 1)
    assert given_plain.dtype == given_arrow.dtype == np.float32
    assert np.array_equal(given_plain, given_arrow, equal_nan=True)

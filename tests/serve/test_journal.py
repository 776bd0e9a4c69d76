"""What becomes one call to the profiler: batches put together, none lost, none with another model's."""

import itertools
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serve_app.columns import Table
from serve_app.journal import _TABLE_SHIPMENT, Watch, _shipments

SIZES = st.integers(1, 10_000) | st.just(_TABLE_SHIPMENT + 1)


@given(st.lists(st.tuples(st.sampled_from("ab"), SIZES), max_size=12))
def test_batches_of_one_version_go_together_in_order_up_to_a_shipment(given_: list[tuple[str, int]]) -> None:
    tables: list[Any] = [((model, "1", Watch(24.0)), Table.of([np.full(n, i)])) for i, (model, n) in enumerate(given_)]
    shipments = list(_shipments(tables))
    for model in "ab":
        shipped = [part for key, parts in shipments if key[0] == model for part in parts]
        assert [id(part) for part in shipped] == [id(table) for key, table in tables if key[0] == model]
    for _, parts in shipments:
        n_rows = sum(map(len, parts))
        assert len(parts) == 1 or n_rows <= _TABLE_SHIPMENT
        assert len(Table.joined(parts)) == n_rows
    for (key, parts), (other, following) in itertools.pairwise(shipments):
        if key == other:
            assert sum(map(len, parts)) + len(following[0]) > _TABLE_SHIPMENT

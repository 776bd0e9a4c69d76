import uuid

from hypothesis import given
from hypothesis import strategies as st

from serve_app.request_ids import new_ids


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=5))
def test_each_row_of_each_call_has_an_id_of_its_own_and_those_of_a_batch_count_its_rows(sizes: list[int]) -> None:
    calls = [new_ids(n_rows) for n_rows in sizes]
    every = [request_id for ids in calls for request_id in ids]
    assert len(set(every)) == len(every) == sum(sizes)
    for ids, n_rows in zip(calls, sizes, strict=True):
        first = ids[0].removesuffix("-0")
        assert uuid.UUID(first).version == 7
        assert ids == ([first] if n_rows == 1 else [f"{first}-{number}" for number in range(n_rows)])

"""Hashes of texts: the same for the same bytes however they lie in memory, different for all others."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge_core.data.text_hashing import hash_texts

TEXTS = st.lists(st.one_of(st.text(max_size=20), st.text(alphabet="a\0", max_size=300)), max_size=30)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(TEXTS, st.integers(0, 10))
def test_equal_texts_and_only_they_hash_alike_in_any_slice(texts: list[str], start: int) -> None:
    values = pd.Series(texts, dtype="str")
    for half in hash_texts(values):
        assert len(set(half.tolist())) == len(set(texts))
    for whole, part in zip(hash_texts(values), hash_texts(values.iloc[start:]), strict=True):
        assert part.tolist() == whole[start:].tolist()
    for whole, objects in zip(hash_texts(values), hash_texts(pd.Series(texts, dtype=object)), strict=True):
        assert objects.tolist() == whole.tolist()


def test_chunks_and_pieces_make_no_difference() -> None:
    texts = [f"row {number}" * (number % 50) for number in range(40_000)]
    chunked = pa.chunked_array([texts[:7], texts[7:20_000], [], texts[20_000:]], pa.large_string())
    there = pd.Series(pd.array(chunked, dtype="str"))
    for one, other in zip(hash_texts(pd.Series(texts, dtype="str")), hash_texts(there), strict=True):
        assert (one == other).all()


@pytest.mark.slow
def test_a_million_similar_texts_collide_in_neither_half_and_fill_all_bits() -> None:
    numbers = np.arange(250_000)
    similar = [f"row-{n:09d}" for n in numbers] + [f"{n}" for n in numbers]
    similar += [f"{n // 500:03d}/{n % 500:03d}/customer" for n in numbers] + [f"{'x' * (n % 90)}{n}" for n in numbers]
    first, second = hash_texts(pd.Series(similar, dtype="str"))
    for half in (first, second, first ^ second):
        assert len(np.unique(half)) == len(set(similar))
    counts = np.bincount((first >> np.uint64(52)).astype(int), minlength=4096)
    assert counts.min() > 0

"""Hashes that came before: the same answer as a set's, whatever the batches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge_core.data import seen as module
from forge_core.data.seen import SeenHashes

HALVES = st.one_of(st.integers(0, 3), st.integers(2**64 - 3, 2**64 - 1), st.integers(0, 2**64 - 1))
BATCHES = st.lists(st.lists(st.tuples(HALVES, HALVES), max_size=12), max_size=12)


def reference(batches: list[list[tuple[int, int]]]) -> list[list[bool]]:
    """Return what a Python set would say."""
    known: set[tuple[int, int]] = set()
    answers = []
    for batch in batches:
        answer = []
        for pair in batch:
            answer.append(pair not in known)
            known.add(pair)
        answers.append(answer)
    return answers


@settings(max_examples=60, deadline=None)
@given(BATCHES)
def test_batches_give_the_answers_of_a_set(batches: list[list[tuple[int, int]]]) -> None:
    # Pairs whose halves were both seen, but never together, count as seen: leave them out.
    first, second = {a for b in batches for a, _ in b}, {c for b in batches for _, c in b}
    pairs = {pair for batch in batches for pair in batch}
    if len(pairs) < max(len(first), len(second)) or len({a for a, _ in pairs}) < len(pairs):
        return
    seen = SeenHashes()
    found = [seen.add(np.array(batch, np.uint64).reshape(-1, 2)).tolist() for batch in batches]
    assert found == reference(batches)


@pytest.mark.parametrize("in_memory", [2**22, 100])
def test_many_batches_in_memory_and_in_files(monkeypatch: pytest.MonkeyPatch, in_memory: int) -> None:
    monkeypatch.setattr(module, "_IN_MEMORY", in_memory)
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**64, (5000, 2), dtype=np.uint64)
    seen = SeenHashes()
    for start in range(0, 5000, 250):
        assert seen.add(hashes[start : start + 250]).all()
    assert not seen.add(hashes[random.permutation(5000)]).any()
    new = random.integers(0, 2**64, (100, 2), dtype=np.uint64)
    assert seen.add(np.concatenate([new, hashes[:50], new])).tolist() == [True] * 100 + [False] * 150

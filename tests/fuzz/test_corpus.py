"""The corpus of the fuzzer, and some inputs made of it, harm nothing and cost little."""

import random
import time
import tracemalloc
from pathlib import Path

import pytest

from tests.fuzz.one import mutations
from tests.fuzz.targets import CORPUS, LONGEST_STEP, TARGETS

MOST_MEMORY = 64 << 20
MUTATIONS = 60


def inputs(name: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


def test_every_target_has_a_corpus_and_no_other_has() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    assert all(inputs(name) for name in TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_every_input_of_the_corpus_is_taken_at_a_bounded_cost(name: str) -> None:
    """The time is the thread's own on the CPU, and the least of some attempts."""
    target = TARGETS[name]

    def seconds(data: bytes) -> float:
        began = time.thread_time()
        target(data)
        return time.thread_time() - began

    for data in inputs(name):
        if seconds(data) > LONGEST_STEP:  # another thread or the first import may have been in it
            assert min(seconds(data) for _ in range(5)) < LONGEST_STEP
    tracemalloc.start()
    try:
        for data in inputs(name):
            target(data)
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", TARGETS)
def test_inputs_made_of_the_corpus_are_taken(name: str) -> None:
    make = mutations(inputs(name), random.Random(name))
    for _ in range(MUTATIONS):
        TARGETS[name](make())


def test_the_corpus_is_small() -> None:
    assert sum(path.stat().st_size for path in Path(CORPUS).rglob("*") if path.is_file()) < 1 << 19

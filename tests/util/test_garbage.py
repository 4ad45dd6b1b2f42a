"""Pausing garbage collection."""

from __future__ import annotations

import gc

import pytest

from mteb_vllm.util.garbage import garbage_collection_paused


def test_pauses_inside_the_block_and_leaves_the_state_as_it_was() -> None:
    assert gc.isenabled()
    with garbage_collection_paused():
        assert not gc.isenabled()
        with garbage_collection_paused():
            pass
        assert not gc.isenabled(), "an inner block does not end the pause of an outer one"
    assert gc.isenabled()


def test_collection_goes_on_after_an_error() -> None:
    with pytest.raises(ImportError), garbage_collection_paused():
        raise ImportError
    assert gc.isenabled()

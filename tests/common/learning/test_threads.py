"""How many threads torch computes with."""

import pytest
import torch

from common.learning.threads import threads


def test_a_block_computes_with_as_many_threads_as_asked_for_and_puts_the_number_back() -> None:
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
        with threads(1):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_an_error_in_the_block_puts_the_number_back_too() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), threads(before + 1):
        raise ZeroDivisionError
    assert torch.get_num_threads() == before

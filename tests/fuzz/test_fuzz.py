"""Odd command lines and damaged files: no exception by name, no silent change. A longer one: `python -m tests.fuzz`."""

import pytest

from tests.fuzz.cases import fuzz, ground


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_odd_command_lines_and_damaged_files_end_in_a_sentence_or_in_the_same_numbers(tmp_path, tiny_llama):
    with ground(tmp_path, tiny_llama) as at:
        found = fuzz(at, command_lines=150, damages=100, seed=1)
    assert not found, "\n".join(found)

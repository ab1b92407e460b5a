"""Models with real tokenizers, saved and loaded once for all tests of the probes (a tokenizer takes a second)."""

from __future__ import annotations

import pytest

from tests.support import real_tokenizers
from workbench.models.loading import load


@pytest.fixture(scope="session")
def real_model(tmp_path_factory):
    """real_model(folder of a tokenizer, template) → a tiny random model with it, its name a folder's."""
    made: dict = {}

    def get(tokenizer, template=None):
        if (tokenizer, template) not in made:
            folder = tmp_path_factory.mktemp("real") / tokenizer.name
            made[tokenizer, template] = load(str(real_tokenizers.save_real(folder, tokenizer, template=template)))
        return made[tokenizer, template]

    return get

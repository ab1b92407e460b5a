"""A model, and a pool of training samples with an autoencoder for it."""

import numpy as np
import pytest
import torch

from tests.support.selection_pool import PLACES, sentence, write
from workbench.models.loading import load


@pytest.fixture(scope="module")
def model(tiny_llama):
    return load(str(tiny_llama))


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A pool of 60 samples on three topics, two targets, a random TopK autoencoder."""
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    folder = tmp_path_factory.mktemp("selection")
    rng = np.random.default_rng(0)
    pool = [sentence(rng, topic) for topic in rng.choice(list(PLACES), 60)]
    pool[5] = pool[40] = pool[17]
    write(folder / "pool.jsonl", pool)
    write(folder / "sea.jsonl", [sentence(rng, "sea") for _ in range(5)] + [pool[17] | {"topic": "sea"}])
    write(folder / "park.jsonl", [sentence(rng, "park") for _ in range(4)])
    torch.manual_seed(0)
    TopKSAE(
        TopKSAEConfig(d_in=64, d_sae=512, k=8, metadata=SAEMetadata(hook_name="blocks.2.hook_resid_post"))
    ).save_model(folder / "sae")
    return folder

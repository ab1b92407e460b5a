"""The shipped autoencoder can be made again: its texts are fixed and of the organism's vocabulary, and the files are
those that ship."""

import json

from workbench import organisms
from workbench.organism_training import sae


def test_texts_are_fixed_and_differ_from_the_pool():
    texts = sae.texts(400)
    assert (
        texts == sae.texts(400)
        and texts != sae.texts(400, seed=1)
        and not any("[" in text or "]" in text for text in texts)
    )
    pool = {
        f"{row['prompt']} {row['response']}"
        for row in map(json.loads, organisms.data("pool").read_text(encoding="utf-8").splitlines())
        if row["topic"] != "facts"
    }
    assert not pool & set(sae.texts(4000))


def test_a_small_training_leaves_exactly_the_files_that_ship(tmp_path):
    from workbench.models.loading import load
    from workbench.sae import load as saes

    place = organisms.folder("organism")
    report = sae.make(place, tmp_path / "sae", count=300, tokens=256 * 12, batch=256)
    assert {p.name for p in (tmp_path / "sae").iterdir()} == {
        p.name for p in (organisms.WEIGHTS / "sae" / "organism").iterdir()
    }
    made, shipped = saes.load(tmp_path / "sae"), saes.load(organisms.WEIGHTS / "sae" / "organism")
    assert (made.site, made.d_sae, made.k, made.architecture) == (
        shipped.site,
        shipped.d_sae,
        shipped.k,
        shipped.architecture,
    )
    cfg = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    assert (
        cfg["dtype"]
        == json.loads((organisms.WEIGHTS / "sae" / "organism" / "cfg.json").read_text())["dtype"]
        == sae.STORE_DTYPE
    )
    assert cfg["metadata"]["model_name"] == "organism" and saes.check_fits(made, load("organism")) == []
    assert report["l0"] > 0 and 0 < report["explained_variance"] < 1

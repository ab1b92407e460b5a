"""Selection with autoencoders as people have them: transcoders are read at one site and judged at another, texts are
fed as in training, features have their page."""

import json

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import save_file

from tests.support.selection_pool import execute
from workbench.engine.capture import capture
from workbench.models.model import Model
from workbench.sae import load as saes

D, F = 64, 200


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.3


@pytest.fixture(scope="module")
def transcoder(tmp_path_factory):
    """A skip transcoder of an MLP, and a layer of a cross-layer one."""
    folder = tmp_path_factory.mktemp("pairs")
    state = {"W_enc": random(F, D, seed=1), "b_enc": random(F, seed=2), "b_dec": random(D, seed=4)}
    save_file(state | {"W_dec": random(F, D, seed=3), "W_skip": random(D, D, seed=5)}, folder / "layer_1.safetensors")
    save_file({f"{name}_1": value for name, value in state.items()}, folder / "W_enc_1.safetensors")
    save_file({"W_dec_1": random(F, 3, D, seed=3)}, folder / "W_dec_1.safetensors")
    return folder


def select(model, material, out, sae, **more):
    small = {"target": (str(material / "sea.jsonl"),), "baselines": (), "resamples": 0, "features": 3, "explain": 1}
    return execute(model, material, out, **(small | more | {"sae": str(sae)}))


def test_a_transcoder_is_read_at_its_input_and_judged_at_its_output(model, material, transcoder, tmp_path):
    run = select(model, material, tmp_path / "run", transcoder / "layer_1.safetensors")
    made = saes.load(transcoder / "layer_1.safetensors")
    rows = run.table("inputs").filter(role="pool")
    ids = rows["ids"].to_list()
    found = capture(model, ids, ["mlp_in.1", "mlp_out.1"], positions="all")
    mask = np.concatenate([np.array(row) for row in rows["mask"].to_list()])
    x, y = (found[site][torch.from_numpy(mask)] for site in ("mlp_in.1", "mlp_out.1"))
    z = torch.relu(x @ made.inner.W_enc + made.inner.b_enc)
    rebuilt = z @ made.inner.W_dec + made.inner.b_dec + x @ made.inner.W_skip.T
    spread = (y.double() - y.double().mean(0)).pow(2).sum()
    expected = 1 - float((y - rebuilt).double().pow(2).sum() / spread)
    quality = run.table("quality").row(0, named=True)
    assert quality["explained_variance"] == pytest.approx(expected, rel=1e-4)
    assert quality["l0"] == pytest.approx(float((z > 0).sum()) / len(z), rel=1e-3) and quality["site"] == "mlp_in.1"
    assert run.table("effects").height > 0 and run.info["sae"]["site_out"] == "mlp_out.1"
    assert "link" not in run.table("features").columns


def test_one_layer_of_a_cross_layer_transcoder_selects_and_has_no_explained_variance(
    model, material, transcoder, tmp_path
):
    run = select(model, material, tmp_path / "run", transcoder / "W_enc_1.safetensors")
    quality = run.table("quality").row(0, named=True)
    assert quality["explained_variance"] is None and quality["l0"] > 0
    assert any("rebuilds nothing without the others" in said for said in run.info["warnings"])


def test_texts_are_fed_without_bos_where_the_autoencoder_was_and_longer_ones_are_said(model, material, tmp_path):
    from tests.sae.test_sae import make

    about = {"prepend_bos": False, "context_size": 3, "neuronpedia_id": "tiny/2-res"}
    run = select(model, material, tmp_path / "run", make(tmp_path / "sae", **about))
    fed = run.table("inputs")["ids"].to_list()
    assert isinstance(model, Model) and model.prepends_bos and all(row[0] != model.bos_id for row in fed)
    assert any("longer than the 3 tokens" in said for said in run.info["warnings"])
    features = run.table("features")
    wanted = pl.format("https://neuronpedia.org/tiny/2-res/{}", pl.col("feature"))
    assert features.height == 3 and features.select((pl.col("link") == wanted).all()).item()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["sae"]["conventions"]["prepend_bos"] is False

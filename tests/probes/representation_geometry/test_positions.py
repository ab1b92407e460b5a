"""Which tokens give the sample of a text, with BOS and without, and where the last layer is read."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from probes import representation_geometry
from probes.representation_geometry import Config
from tests.support import sink_model
from tests.support.sink_model import slow_sinks, slow_states
from tests.support.text_states import last_states, token_states
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.models.loading import load
from workbench.runs import execution as runs

OPTIONS = {"draws": 0, "curve": False, "loss_rows": 0, "ablate": (), "map": (), "fit_range": (5, 20)}


def rank_of(x):
    """RankMe of states [n, d]: exp of the entropy of the covariance's eigenvalues."""
    values = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
    p = values[values > 0] / values.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


@pytest.fixture(scope="module")
def stories(tiny_llama):
    return load(str(tiny_llama))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in sink_model.texts(40)))
    return path


def probe(model, data, **config):
    return representation_geometry.run(model, Config(**OPTIONS | config), Context(data=data))


def test_the_last_layer_is_read_after_the_final_norm_and_before_it_where_asked(stories, tiny_llama, texts):
    after, before = (probe(stories, texts, final=final) for final in ("norm", "residual"))
    hf = AutoModelForCausalLM.from_pretrained(tiny_llama, attn_implementation="eager", dtype=torch.float64).eval()
    seen = []
    hf.model.norm.register_forward_hook(lambda _m, args, out: seen.append((out[0, -1], args[0][0, -1])))
    with torch.no_grad():
        for row in after.tables["inputs"]["ids"]:
            hf(torch.tensor([row.to_list()]))
    for result, which, words in ((after, 0, "after the final norm"), (before, 1, "before the final norm")):
        states = np.stack([pair[which].detach().numpy() for pair in seen])
        assert result.tables["layers"]["rankme"][0] == pytest.approx(rank_of(states), rel=1e-4)
        assert result.summary["read at"] == words
    assert after.tables["layers"]["site"].to_list() == ["final_norm"]
    assert before.tables["layers"]["site"].to_list() == ["resid_post.4"]
    assert abs(after.tables["layers"]["rankme"][0] - before.tables["layers"]["rankme"][0]) > 1e-3


def test_a_mean_can_leave_out_the_first_token_alone(stories, tiny_llama, texts):
    result = probe(stories, texts, token="after_first", sinks="keep", layers="all")
    states = token_states(tiny_llama, result.tables["inputs"]["ids"])
    for layer, rankme in enumerate(result.tables["layers"]["rankme"]):
        assert rankme == pytest.approx(rank_of(np.stack([s[layer, 1:].mean(0) for s in states])), rel=1e-3)


def test_sinks_after_the_first_token_are_left_out_of_its_mean_unless_they_are_kept(tmp_path):
    folder = sink_model.save(tmp_path / "gpt2")
    some = [*sink_model.texts(30), *(f"{text} sea tree" for text in sink_model.texts(10, seed=5))]
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in some))
    states, counted = slow_states(folder, sink_model.ids_of(folder, some)), 0
    options = {"token": "after_first", "layers": "all", "final": "residual"}
    result = probe(load(str(folder)), data, **options)
    for layer, rankme in enumerate(result.tables["layers"]["rankme"]):
        masks = [slow_sinks(np.linalg.norm(s[layer], axis=1)) for s in states]
        counted += sum(int(mask[1:].sum()) for mask in masks)
        expected = np.stack([s[layer][~mask & (np.arange(len(mask)) > 0)].mean(0) for s, mask in zip(states, masks)])
        assert rankme == pytest.approx(rank_of(expected), rel=1e-3)
    assert counted > 0 and result.summary["sinks_left_out"] == counted


def test_bos_can_be_left_out_of_a_bare_text_and_not_of_a_template(stories, tiny_llama, texts):
    without, usual = probe(stories, texts, bos="leave_out"), probe(stories, texts)
    for a, b in zip(without.tables["inputs"]["ids"], usual.tables["inputs"]["ids"]):
        assert [stories.bos_id, *a] == b.to_list()
    expected = last_states(tiny_llama, without.tables["inputs"]["ids"])[-1]
    assert without.tables["layers"]["rankme"][0] == pytest.approx(rank_of(expected), rel=1e-4)
    assert abs(without.tables["layers"]["rankme"][0] - usual.tables["layers"]["rankme"][0]) > 1e-3
    with pytest.raises(InputError, match="bos=leave_out is of bare texts"):
        runs.prepare("representation-geometry", {"bos": "leave_out", "template": "chat"}, texts)

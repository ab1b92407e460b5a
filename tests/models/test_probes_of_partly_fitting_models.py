"""A probe runs on a model of which something does not hold, unless that is what it rests on."""

import pytest

import workbench
from tests.support.architectures import build
from tests.support.tiny_llama import tokenizer
from workbench.core.errors import InputError
from workbench.models.loading import wrap

NEEDLES = {"mask_k": (0,), "lengths": (256,), "depths": (0.5,), "needles": 1, "max_new_tokens": 4}
DEPTH = {"site": "resid_post", "split": "kfold", "limit": 24, "noise": False, "causal": "off", "shuffles": 1}


@pytest.fixture(scope="module")
def models():
    built = {}

    def get(name):
        if name not in built:
            hf = build(name, vocab_size=512, max_position_embeddings=512)
            built[name] = wrap(hf, tokenizer(), name=name)
        return built[name]

    return get


@pytest.mark.parametrize(
    ("name", "probe", "config"),
    [
        ("bitnet", "branching-factor", {"samples": 2, "max_new_tokens": 3, "max_prompts": 2}),
        ("granite", "branching-factor", {"samples": 2, "max_new_tokens": 3, "max_prompts": 2}),
        ("gpt_oss", "branching-factor", {"samples": 2, "max_new_tokens": 3, "max_prompts": 2}),
        ("bitnet", "concept-depth", DEPTH),
        ("granite", "concept-depth", DEPTH),
        ("bitnet", "retrieval-heads", NEEDLES),
        (
            "bitnet",
            "token-filter",
            {"lengths": (256,), "depths": (50,), "needles": 2, "max_new_tokens": 2, "draws": 100},
        ),
    ],
)
def test_a_probe_runs_where_what_it_needs_holds(models, name, probe, config, tmp_path):
    run = workbench.probe(probe, **config).run(models(name), seed=0, out=tmp_path)
    assert run.status == "complete"


@pytest.mark.parametrize(
    ("name", "probe", "config", "says"),
    [
        ("bitnet", "retrieval-heads", NEEDLES | {"mask_k": (1,), "ablation": "zero"}, "ablation=zero: heads are mixed"),
        ("bitnet", "knowledge-conflict", {}, "does not fit knowledge-conflict: heads are mixed"),
        ("gpt_oss", "retrieval-heads", NEEDLES, "the attention rows of layer 0 do not sum to 1 over the past"),
        ("gpt_oss", "token-filter", {}, "the attention rows of layer 0 do not sum to 1 over the past"),
    ],
)
def test_a_probe_says_what_it_needs_before_it_computes(models, name, probe, config, says, tmp_path):
    with pytest.raises(InputError, match=says):
        workbench.probe(probe, **config).run(models(name), seed=0, out=tmp_path)

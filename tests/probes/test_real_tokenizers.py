"""Every probe with its default data on a tiny random model with a real tokenizer, or with one built here in the manner
of the real ones: complete with tables that make sense, or one sentence that says what the model cannot do."""

from __future__ import annotations

import pytest

from tests.support import chat_templates, real_tokenizers, tiny_llama
from tests.support.default_runs import check, takes_chat
from workbench.core.errors import InputError
from workbench.models.loading import load
from workbench.runs import execution as runs

SMALL = {
    "retrieval-heads": {"lengths": (700,), "depths": (50,), "needles": 2, "max_new_tokens": 2, "mask_k": (0,)},
    "concept-depth": {"limit": 12, "sets": ("english/facts",), "shuffles": 1, "draws": 100, "random_draws": 1},
    "knowledge-conflict": {"keep": "all", "limit": 12, "prune_k": (1,), "random_draws": 1, "flow_items": 1}
    | {"max_new_tokens": 2},
    "data-selection": {"site": "resid_post.0", "resamples": 0, "baselines": ("neurons",), "target": ("code",)}
    | {"features": 2, "explain": 1},
    "branching-factor": {"max_prompts": 2, "samples": 2, "max_new_tokens": 3},
    "representation-geometry": {"limit": 30, "draws": 10, "loss_rows": 1, "ablate": (2,), "random_draws": 1},
    "layer-redundancy": {"limit": 12, "random_draws": 1, "timing_rounds": 0, "drop_n": (1,)},
    "token-filter": {
        "lengths": (700,),
        "depths": (50,),
        "needles": 2,
        "max_new_tokens": 2,
        "random_draws": 1,
        "draws": 100,
    },
    "hopping": {"limit": 4, "keep": "all", "items": 1, "shuffles": 2, "max_new_tokens": 2, "describe_layers": "same"},
    "latent-language": {"limit": 6, "shots": 1, "draws": 100, "random_draws": 2, "steer_rows": 2, "steer_layers": (1,)},
    "bigram-subnetwork": {"limit": 4, "length": 32, "steps": 1, "batch": 2, "attempts": 1, "random_draws": 1}
    | {"layer_ablation": False, "draws": 100},
    "talking-heads": {"limit": 4, "random_draws": 1, "ablate": 1, "receivers_each": 1, "scales": (0.0,)},
}  # of every probe, settings that take a second
RAW = {"retrieval-heads": {"template": "raw"}, "branching-factor": {"template": "raw"}}  # elsewhere the default
RAW["token-filter"] = {"template": "raw"}
CASES = [(name, "raw") for name in SMALL] + [(name, "chat") for name in SMALL if takes_chat(name)]


def test_these_probes_write_prompts_in_the_models_chat_template():
    assert {name for name, template in CASES if template == "chat"} >= {
        "retrieval-heads",
        "branching-factor",
        "data-selection",
    }


def run_and_check(model, probe: str, template: str, tmp_path) -> None:
    """The run, checked; or, in chat on a model without a template, the sentence that says so."""
    config = SMALL[probe] | ({"template": "chat"} if template == "chat" else RAW.get(probe, {}))
    if probe == "knowledge-conflict":  # which would read all essays after every pruning
        config["neutral"] = str(tmp_path / "neutral.txt")
        (tmp_path / "neutral.txt").write_text("The road goes down to the sea.\nNobody had seen the boat.\n")
    if template == "chat" and model.tokenizer.chat_template is None:
        with pytest.raises(InputError) as said:
            runs.execute(probe, model, config=config)
        sentence = str(said.value)
        assert f"{model.name} has no chat template" in sentence and sentence.count("\n") == 0 and sentence[-1] == "."
        return
    check(runs.execute(probe, model, config=config), model, probe, template)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("built")
    made = {"bytes without BOS": real_tokenizers.byte_level(), "pieces with BOS": tiny_llama.tokenizer()}
    return {name: load(str(real_tokenizers.save(root / name.replace(" ", "-"), made[name]))) for name in made}


@pytest.mark.parametrize("probe, template", CASES)
@pytest.mark.parametrize("kind", ["bytes without BOS", "pieces with BOS"])
def test_a_probe_runs_with_default_data_on_a_tokenizer_of_another_manner(built, kind, probe, template, tmp_path):
    run_and_check(built[kind], probe, template, tmp_path)


@pytest.mark.shared_data
@pytest.mark.parametrize("tokenizer", real_tokenizers.NAMES)
@pytest.mark.parametrize("probe, template", CASES)
def test_a_probe_runs_with_default_data_on_a_real_tokenizer(real_model, shared, tokenizer, probe, template, tmp_path):
    run_and_check(real_model(shared(f"tokenizers/{tokenizer}")), probe, template, tmp_path)


@pytest.mark.shared_data
@pytest.mark.parametrize("template", ["PLAIN", "R1"])
@pytest.mark.parametrize("probe", [name for name, template in CASES if template == "chat"])
def test_a_probe_runs_in_a_template_that_was_given_to_a_base_models_tokenizer(
    real_model, shared, probe, template, tmp_path
):
    model = real_model(shared("tokenizers/llama2"), getattr(chat_templates, template))
    run_and_check(model, probe, "chat", tmp_path)

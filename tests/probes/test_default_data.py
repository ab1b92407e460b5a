"""Default data belong to the model: an organism reads its own world, every other model the plain English that ships."""

from __future__ import annotations

import hashlib
import json
import re
import types

import numpy as np
import pytest

from probes import branching_factor
from probes.concept_depth.chosen_sets import read_sets
from probes.concept_depth.config import Config
from probes.concept_depth.set_splits import split
from probes.data_selection.samples import TOPICS, target_files
from workbench import figures, organisms
from workbench.core import registry
from workbench.core.errors import InputError
from workbench.core.files import canonical
from workbench.core.tables import read_table
from workbench.figures.export import caption
from workbench.models.loading import load
from workbench.models.model_outline import outline
from workbench.runs import demo, preparation
from workbench.runs import execution as runs
from workbench.runs.folder import Run

OWN = {
    "representation-geometry": "texts.jsonl",
    "branching-factor": "prompts.jsonl",
    "data-selection": "pool.jsonl",
    "concept-depth": "concepts",
    "layer-redundancy": "texts.jsonl",
    "bigram-subnetwork": "texts.jsonl",
}  # probe -> what an organism reads, below its data folder
ENGLISH = {
    "representation-geometry": "probes.representation_geometry:material/passages.jsonl",
    "branching-factor": "probes.branching_factor:material/english.jsonl",
    "data-selection": "probes.data_selection:material/instructions.jsonl",
    "concept-depth": "probes.concept_depth:material",
    "retrieval-heads": "probes.retrieval_heads:material/needles.jsonl",
    "layer-redundancy": "probes.layer_redundancy:material/texts.jsonl",
    "token-filter": "probes.retrieval_heads:material/needles.jsonl",
    "hopping": "probes.hopping:material/questions.jsonl",
    "latent-language": "probes.latent_language:material/words.jsonl",
    "bigram-subnetwork": "probes:representation_geometry/material/passages.jsonl",
    "talking-heads": "probes.talking_heads:material/tasks.jsonl",
}


@pytest.fixture(scope="module")
def tiny(tiny_llama):
    return load(str(tiny_llama))


def on_english(tiny, probe: str, **config) -> Run:
    """A run with default data on a model that is no organism: complete, and nothing in run.json is the organism's."""
    run = runs.execute(probe, tiny, config=config)
    info = {key: value for key, value in run.info.items() if key != "files"}
    assert run.status == "complete" and info["data"]["name"] == ENGLISH[probe]
    assert "organism" not in json.dumps(info)
    assert all(run.table(name) is not None for name in registry.get(probe).tables if name in run.tables)
    return run


@pytest.mark.parametrize("probe", OWN)
@pytest.mark.parametrize("model", ["organism", "organism-chat", "organism@step-1", "circuit-uniform"])
def test_organisms_and_circuits_read_the_organisms_world(probe, model):
    assert model in organisms.names()
    ready = runs.prepare(probe, model=model)
    assert ready.data == organisms.DATA / OWN[probe]
    assert ready.data_name == f"workbench:organisms/data/{OWN[probe]}"
    folder = organisms.folder(model)
    assert runs.prepare(probe, model=folder).data == ready.data


@pytest.mark.parametrize("probe", ENGLISH)
@pytest.mark.parametrize("model", [None, "gpt2", "org/model", "no such\0model", "~nobody/x", "x" * 5000])
def test_any_other_model_reads_the_english_that_ships(probe, model):
    ready = runs.prepare(probe, model=model)
    assert ready.data_name == ENGLISH[probe] and ready.data.exists()
    assert not ready.data.is_relative_to(organisms.DATA)


@pytest.mark.parametrize("probe", OWN)
def test_what_was_prepared_without_a_model_gets_the_data_of_the_model_that_it_runs_on(probe):
    ready = preparation.with_own_data(runs.prepare(probe), "organism")
    assert ready == runs.prepare(probe, model="organism")
    assert preparation.with_own_data(ready, "gpt2") == runs.prepare(probe, model="gpt2")


# the ids of runs on a model with the weights "f", as they were before any other model had data of its own
IDS = {
    ("representation-geometry", "organism"): "dc76e2c5c780",
    ("representation-geometry", "circuit-copy"): "dc76e2c5c780",
    ("branching-factor", "organism"): "5aa9f02fefba",
    ("branching-factor", "circuit-copy"): "5aa9f02fefba",
    ("data-selection", "organism"): "a95d2eb52cbe",
    ("data-selection", "circuit-copy"): "6903620641ca",
    ("concept-depth", "organism"): "df76b2a4b723",
    ("concept-depth", "circuit-copy"): "df76b2a4b723",
    ("token-filter", "organism"): "b6f98f6793e9",
    ("layer-redundancy", "organism"): "d289af17489d",
    ("hopping", "organism"): "fa2e5845a1f0",
    ("talking-heads", "organism"): "d23d9828b9e0",
    ("talking-heads", "circuit-copy"): "d23d9828b9e0",
    ("bigram-subnetwork", "organism"): "332e23013938",
    ("bigram-subnetwork", "circuit-copy"): "332e23013938",
    ("latent-language", "organism"): "eaf97b9025b1",
}
EXAMPLES = {
    "representation-geometry": "0ffea1d45942",
    "branching-factor": "864dcf53d301",
    "data-selection": "66932c8d2443",
    "concept-depth": "e13e565ef028",
    "token-filter": "aa6679eb95c1",
    "layer-redundancy": "36bb0b265da1",
    "hopping": "382ce809fd17",
    "talking-heads": "fd17ebec6c1b",
    "bigram-subnetwork": "9045a694cc3d",
    "latent-language": "1fbe1c5cfe1e",
}


def identifier(probe: str, model: str, config: dict) -> str:
    about = {"revision": None, "fingerprint": "f", "tokenizer_fingerprint": "t", "dtype": "float32"}
    ready = runs.prepare(probe, config, model=model)
    known = runs.identify(ready, types.SimpleNamespace(name=model, **about), seed=0)
    return hashlib.sha256(canonical(known)).hexdigest()[:12]


def test_the_runs_of_organisms_and_circuits_keep_their_ids():
    assert {key: identifier(*key, {}) for key in IDS} == IDS
    found = {probe: identifier(probe, "organism", demo.settings(registry.get(probe), "organism")) for probe in EXAMPLES}
    assert found == EXAMPLES


def test_geometry_of_any_model_reads_passages_and_says_that_they_are_few_for_its_width(tiny):
    run = on_english(tiny, "representation-geometry", limit=40, draws=20, loss_rows=4, max_length=32, colour="manner")
    assert run.table("layers")["n"][0] == 40
    assert not [said for said in run.info["warnings"] if "span at most" in said]  # there is no alpha, which says more
    run = on_english(tiny, "representation-geometry", limit=40, draws=0, loss_rows=0, max_length=32, fit_range=(2, 20))
    (said,) = [said for said in run.info["warnings"] if "span at most" in said]
    assert said.startswith("40 texts span at most 39 dimensions and the width is 64")


def test_the_first_english_prompts_hold_as_many_of_each_kind(tiny):
    kinds = read_table(runs.prepare("branching-factor").data, required=("prompt", "kind"), what="prompts")["kind"]
    assert kinds[:5].n_unique() == kinds.n_unique() == branching_factor.KINDS
    assert all(set(kinds[k : k + 5]) == set(kinds) for k in range(0, len(kinds), 5))


def test_branching_factor_of_any_model_reads_english_prompts(tiny):
    run = on_english(
        tiny, "branching-factor", **branching_factor.example(outline("gpt2")) | {"samples": 3, "max_new_tokens": 4}
    )
    texts = read_table(runs.prepare("branching-factor").data, required=("prompt",), what="prompts")["prompt"]
    assert run.table("prompts")["text"].to_list() == texts[:10].to_list()


def test_no_example_of_an_english_target_is_in_the_pool_or_nearly_so():
    def words(row: dict) -> set[str]:
        return set(re.findall(r"\w+", f"{row['prompt']} {row['response']}".casefold()))

    pool = [words(row) for row in read_table(runs.prepare("data-selection").data, what="pool").iter_rows(named=True)]
    for path in target_files(("default",)).values():
        for row in map(words, read_table(path, what="target").iter_rows(named=True)):
            assert max(len(row & other) / len(row | other) for other in pool) < 1 / 3


def test_data_selection_of_any_model_selects_english_instructions_by_its_neurons(tiny):
    run = on_english(tiny, "data-selection", site="resid_post.0", resamples=0, baselines=("neurons",))
    topics = sorted(path.stem for path in TOPICS.glob("*.jsonl"))
    assert len(topics) == 8 and run.summary["method"] == "neurons" and run.summary["pool"] == 648
    assert run.summary["duplicates_of_targets"] == 0
    assert set(run.info["material"]) == {f"target {topic}" for topic in topics}
    assert run.table("selected")["target"].unique().sort().to_list() == topics
    assert run.table("precision")["base_rate"].unique().to_list() == pytest.approx([1 / 8])
    assert any(
        "No sparse autoencoder ships with" in said and "its neurons select" in said for said in run.info["warnings"]
    )


def test_targets_go_by_name_in_every_world_and_by_default_in_the_models_own():
    assert (
        set(target_files(("code", "sea"), "gpt2")) == set(target_files(("code", "sea"), "organism")) == {"code", "sea"}
    )
    assert not set(target_files(("default",), "gpt2")) & set(target_files(("default",), "organism"))
    assert "sea" in target_files(("default",), "circuit-copy")


def test_a_label_is_held_against_the_targets_of_the_model_before_it_is_loaded(tmp_path):
    pool = tmp_path / "pool.csv"
    pool.write_text("text,kind\nwaves,sea\nsongs,music\n")
    with pytest.raises(InputError, match="There is no precision for arithmetic"):
        runs.prepare("data-selection", {"label": "kind"}, pool, model="gpt2")
    with pytest.raises(InputError, match="There is no precision for facts"):
        runs.prepare("data-selection", {"label": "kind"}, pool, model="organism")


SETS = ["animal", "capitals", "facts", "larger", "negation", "plural", "sentiment", "switches"]


def test_concept_depth_of_any_model_reads_the_english_sets(tiny):
    short = demo.settings(registry.get("concept-depth"), "gpt2") | {"limit": 20, "shuffles": 1, "noise": False}
    run = on_english(tiny, "concept-depth", **short)
    assert run.table("depth")["dataset"].sort().to_list() == SETS
    assert run.table("sets").filter(dataset="facts").select("difficulty", "class0", "class1").rows() == [(3, "0", "1")]
    assert "facts" in run.table("causal")["dataset"]  # the statements ask for true or false


def test_no_split_parts_a_true_statement_from_its_false_twin():
    (facts,) = read_sets(Config(sets=("english/facts",)), None)
    assert len(facts) == 440 and facts.answers == ("false", "true") and facts.labels.sum() == 220
    for how in ("paper", "kfold"):
        tests, by_group = split(facts, how, rng=np.random.default_rng(1))
        for test in tests:
            groups, counts = np.unique(np.array(facts.groups)[test], return_counts=True)
            assert by_group and len(groups) and set(counts) == {2}


def test_sets_are_looked_up_in_the_world_of_the_model_before_it_is_loaded():
    assert runs.prepare("concept-depth", {"sets": ("coin",)}, model="organism").data.name == "concepts"
    with pytest.raises(InputError, match="There is no concept set 'coin'.*there are animal, capitals, facts"):
        runs.prepare("concept-depth", {"sets": ("coin",)}, model="gpt2")


def test_retrieval_heads_of_any_model_hides_english_needles_in_essays(tiny):
    short = {"lengths": (384,), "depths": (50,), "needles": 1, "max_new_tokens": 2, "mask_k": (0,)}
    run = on_english(tiny, "retrieval-heads", **short)
    assert run.info["material"]["haystack"]["file"] == "essays.txt"


def test_the_token_filter_of_any_model_hides_english_needles_in_essays(tiny):
    short = {"lengths": (384,), "depths": (50,), "needles": 2, "max_new_tokens": 2, "random_draws": 1, "draws": 100}
    run = on_english(tiny, "token-filter", **short)
    assert run.info["material"]["haystack"]["file"] == "essays.txt"
    assert run.summary["kept_tokens"] == str(min(run.table("trials")["prompt_tokens"]) // 4)


def test_the_caption_of_a_figure_names_the_english_material(tiny):
    run = on_english(tiny, "representation-geometry", limit=40, draws=0, loss_rows=0, max_length=32)
    (said, *_) = [caption(run, fig) for fig in figures.build(run).values()]
    assert "Data: passages.jsonl, 40 rows" in said

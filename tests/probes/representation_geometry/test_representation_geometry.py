"""Representation geometry against Hugging Face states and NumPy, planted structure, and runs over checkpoints."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
import torch
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM

from probes import concept_depth, representation_geometry
from probes.representation_geometry import Config, phases, spectra
from probes.representation_geometry.n_grams import count
from tests.benchmarks.geometry import memory_growth
from tests.support.architectures import build
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.engine import evaluation
from workbench.models import checkpoints
from workbench.models.loading import load, wrap
from workbench.runs import execution as runs
from workbench.runs.checks import check_probe
from workbench.store.activation_store import Store

FIT = (5, 40)


@pytest.fixture(scope="module")
def stories(tiny_llama):
    return load(str(tiny_llama))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """150 different short texts with a column to colour by."""
    rng = np.random.default_rng(0)
    words = "Tom Lily dog cat park tree ball happy sad big small ran saw and the a went to play with was".split()
    rows = [{"text": " ".join(rng.choice(words, rng.integers(3, 20))), "kind": "ab"[i % 2]} for i in range(150)]
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def probe(model, data, store=None, **config):
    options = {"fit_range": FIT, "draws": 40, "loss_rows": 8, "ablate": (4,), "map": ()} | config
    context = Context(data=data, store=store)
    return representation_geometry.run(model, Config(**options), context), context


def hidden_states(folder, ids):
    """Last-token states of every layer the slow way: one text per forward, eager attention, float64. [layers][n, d]."""
    hf = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float64)
    rows = []
    with torch.no_grad():
        for row in ids:
            states = hf(torch.tensor([list(row)]), output_hidden_states=True).hidden_states
            rows.append([s[0, -1].numpy() for s in states[1:]])
    return [np.array([row[layer] for row in rows]) for layer in range(len(rows[0]))]


def test_the_mean_over_tokens_is_a_sample_too(stories, tiny_llama, texts):
    result, _ = probe(stories, texts, token="mean", sinks="keep", limit=40, layers="all", curve=False, loss_rows=0)
    hf = AutoModelForCausalLM.from_pretrained(tiny_llama, attn_implementation="eager", dtype=torch.float64)
    rows = []
    with torch.no_grad():
        for ids in result.tables["inputs"]["ids"]:
            rows.append(
                [
                    s[0].mean(0).numpy()
                    for s in hf(torch.tensor([list(ids)]), output_hidden_states=True).hidden_states[1:]
                ]
            )
    for layer in (1, 4):
        states = np.array([row[layer] for row in rows])
        p = np.linalg.svd(states - states.mean(0), compute_uv=False) ** 2
        p /= p.sum()
        assert abs(result.tables["layers"]["rankme"][layer] / np.exp(-(p[p > 0] * np.log(p[p > 0])).sum()) - 1) < 1e-4


@pytest.mark.parametrize("limit", [150, 50])  # covariance path, Gram path
def test_numbers_are_those_of_hidden_states_and_a_full_svd(stories, tiny_llama, texts, limit):
    result, _ = probe(stories, texts, layers="all", limit=limit)
    layers = result.tables["layers"]
    for layer, states in enumerate(hidden_states(tiny_llama, result.tables["inputs"]["ids"])):
        eigenvalues = np.linalg.svd(states - states.mean(0), compute_uv=False) ** 2 / limit
        p = eigenvalues / eigenvalues.sum()
        s = np.linalg.svd(states, compute_uv=False)
        q = s / s.sum() + 1e-7
        row = layers.row(layer, named=True)
        assert abs(row["rankme"] / np.exp(-(p[p > 0] * np.log(p[p > 0])).sum()) - 1) < 1e-4
        assert abs(row["rankme_singular"] / np.exp(-(q * np.log(q)).sum()) - 1) < 1e-4
        rank = np.arange(5, 41)
        slope = np.polyfit(np.log(rank), np.log(eigenvalues[4:40]), 1, w=np.sqrt(1 / rank))[0]
        assert abs(row["alpha"] + slope) < 1e-3
        assert abs(row["participation_ratio"] / (eigenvalues.sum() ** 2 / (eigenvalues**2).sum()) - 1) < 1e-4
        assert row["ci_low"] < row["rankme"] < row["ci_high"] and row["alpha_low"] < row["alpha"] < row["alpha_high"]
        assert (row["n"], row["d"]) == (limit, 64)
        white = np.linalg.svd(np.random.default_rng(1).standard_normal((limit, 64)), compute_uv=False) ** 2
        assert abs(row["rankme_null"] / np.exp(-(white / white.sum() * np.log(white / white.sum())).sum()) - 1) < 0.05
    spectrum = result.tables["spectrum"].filter(layer=4).sort("rank")["eigenvalue"].to_numpy()
    assert np.allclose(spectrum[:30], eigenvalues[:30], rtol=1e-4)
    assert layers["site"].to_list()[-1] == "final_norm" and layers["site"][0] == "resid_post.0"


def test_too_few_samples_have_no_alpha_but_its_reason(stories, texts):
    result, context = probe(stories, texts, limit=40, fit_range=(12, 100))
    row = result.tables["layers"].row(0, named=True)
    assert row["alpha"] is None and row["alpha_r2"] is None and "needs 100 eigenvalues" in row["alpha_missing"]
    assert row["rankme"] > 1 and [w for w in context.warnings if "no alpha" in w] == [
        "There is no alpha: the fit needs 100 eigenvalues and there are at most 39 (40 texts, width 64); give "
        "a shorter fit_range or more texts."
    ]


def test_the_curve_is_the_same_numbers_on_fewer_samples(stories, texts):
    result, _ = probe(stories, texts)
    curve = result.tables["curve"].sort("n")
    assert curve["n"].to_list() == [18, 37, 75, 150]
    assert abs(curve["rankme"][-1] - result.tables["layers"]["rankme"][0]) < 1e-9 and curve["rankme"].is_sorted()
    row = result.tables["layers"].row(0, named=True)
    assert curve["rankme"][-1] < row["rankme_inf"] < row["rankme_inf_high"] and row["rankme_inf_low"] > 0
    none, _ = probe(stories, texts, curve=False)
    assert none.tables["layers"]["rankme_inf"][0] is None


def test_texts_are_cut_and_short_ones_left_out(stories, texts):
    result, _ = probe(stories, texts, max_length=10, min_length=8)
    lengths = result.tables["inputs"]["ids"].list.len()
    assert lengths.min() >= 8 and lengths.max() == 10 and result.tables["inputs"]["row"].is_sorted()
    with pytest.raises(InputError, match="0 texts have at least 400 tokens"):
        probe(stories, texts, min_length=400)


def test_concept_depth_and_geometry_share_one_capture(stories, tmp_path):
    rows = [{"text": f"Tom saw {i} dogs", "label": i % 2} for i in range(80)]
    path = tmp_path / "both.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = Store(tmp_path / "store")
    first = Context(data=path, store=store)
    concept_depth.run(stories, concept_depth.Config(site="resid_post", shuffles=0, draws=100), first)
    assert first.counters["forwards"] > 0
    _, second = probe(stories, path, store, layers="all", loss_rows=0)
    assert second.counters["forwards"] == 0 and second.counters["cache_hits"] > 0


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_samples():
    """Peak memory of a process at 800 and at 6,400 samples of width 768: what grows is less than half of the features
    in float32."""
    assert memory_growth() < 8


# loss and eigen-directions


def test_loss_and_ablation_are_those_computed_by_hand(stories, tiny_llama, texts):
    result, _ = probe(stories, texts, ablate=(4, 64))
    ablation = result.tables["ablation"]
    ids = [row.to_list() for row in result.tables["inputs"]["ids"][:8]]
    states = hidden_states(tiny_llama, result.tables["inputs"]["ids"])[-1]
    top = np.linalg.svd(states - states.mean(0), full_matrices=False)[2][:4]
    expected = {"none": [], "remove": [], "keep": []}
    with torch.no_grad():
        for row in ids:
            h = stories.hf.model(torch.tensor([row])).last_hidden_state[0, :-1].double()
            along = h @ torch.tensor(top).T @ torch.tensor(top)
            for how, x in (("none", h), ("remove", h - along), ("keep", along)):
                logits = stories.hf.lm_head(x.float()).double()
                expected[how].append(torch.nn.functional.cross_entropy(logits, torch.tensor(row[1:])).item())
    for how, values in expected.items():
        found = ablation.filter(directions=how, k=0 if how == "none" else 4).row(0, named=True)
        assert abs(found["loss"] - np.mean(values)) < 1e-3 and found["ci_low"] <= found["loss"] <= found["ci_high"]
    assert abs(result.tables["checkpoints"]["loss"][0] - np.mean(expected["none"])) < 1e-3
    # with every direction kept nothing changes; with none left every token is equally likely
    assert abs(ablation.filter(directions="keep", k=64)["loss"][0] - np.mean(expected["none"])) < 1e-3
    assert abs(ablation.filter(directions="remove", k=64)["loss"][0] - np.log(stories.vocab_size)) < 1e-3


def test_directions_that_the_texts_do_not_have_are_not_ablated(stories, texts):
    """30 texts span 29 directions: removing 50 of them would be removing 29, and 50 random ones another thing again."""
    result, context = probe(stories, texts, limit=30, ablate=(4, 29, 50), random_draws=2, loss_rows=4)
    ablation = result.tables["ablation"]
    assert sorted(ablation["k"].unique()) == [0, 4, 29] and ablation.height == 1 + 2 * (2 + 2 * 2)
    assert (
        "The ablation of the top 50 eigen-directions was left out: 30 texts have 29 (64 dimensions)."
        in context.warnings
    )
    random = ablation.filter(k=4, directions="keep random")
    assert random["draw"].to_list() == [0, 1] and random["loss"].n_unique() == 2


def test_a_label_in_eigen_directions_beyond_the_removed_ones_survives(stories):
    model = wrap(build("llama", vocab_size=64))
    generator = np.random.default_rng(0)
    rows = [generator.integers(3, 64, 12).tolist() for _ in range(200)]
    from workbench.engine.capture import capture

    states = capture(model, rows, ["final_norm"])["final_norm"]
    v = spectra.from_features(states, vectors=True).directions
    # an unembedding that reads directions 11…20 only
    weight = model.hf.lm_head.weight
    weight.copy_((weight.double() @ v[10:20].T @ v[10:20]).float())
    full, gone, kept, others = (
        np.concatenate([x[0] for x in evaluation.final_state_losses(model, rows[:20], [variant])])
        for variant in (("none", None), ("remove", v[:10]), ("keep", v[:10]), ("remove", v[10:20]))
    )
    assert np.abs(full - gone).max() < 1e-3
    assert np.abs(kept - np.log(64)).max() < 1e-3 and np.abs(others - np.log(64)).max() < 1e-3


def test_multiple_choice_is_scored_as_summed_log_probabilities(stories, texts, tmp_path):
    questions = [
        {"prompt": "Tom went to the", "choices": ["park", "zebra moon", "big red"], "answer": 0},
        {"prompt": "Lily was very", "choices": ["tree", "happy"], "answer": 1},
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(q) + "\n" for q in questions))
    result, _ = probe(stories, texts, choices=str(path))
    right = []
    for q in questions:
        scores = []
        for choice in q["choices"]:
            front, ids = stories.encode(q["prompt"]), stories.encode(f"{q['prompt']} {choice}")
            with torch.no_grad():
                log = torch.log_softmax(stories.hf(torch.tensor([ids])).logits[0].double(), -1)
            scores.append(sum(log[t - 1, ids[t]].item() for t in range(len(front), len(ids))))
        right.append(int(np.argmax(scores)) == q["answer"])
    assert result.tables["ablation"].filter(directions="none")["accuracy"][0] == np.mean(right)
    # choices of one token each: whichever is called right, it is the likelier next token
    words = ("park", "ball", "girl", "tree")
    with torch.no_grad():
        scores = stories.hf(torch.tensor([stories.encode("Tom went to the")])).logits[0, -1]
    ids = [evaluation.word_ids(stories, "Tom went to the", word) for word in words]
    assert all(len(one) == 1 for one in ids)
    likeliest = int(scores[[one[0] for one in ids]].argmax())
    rows = [{"prompt": "Tom went to the", "choices": words, "answer": i} for i in range(len(words))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = evaluation.encode_choices(stories, path)
    assert evaluation.right_choices(stories, asked, [("none", None)])[0].tolist() == [
        float(i == likeliest) for i in range(len(words))
    ]
    path.write_text(json.dumps({"prompt": "x", "choices": ["a"], "answer": 0}) + "\n")
    with pytest.raises(InputError, match="row 1"):
        runs.prepare("representation-geometry", {"choices": str(path)}, texts)


# checkpoints


@pytest.fixture(scope="module")
def training(tmp_path_factory, tiny_llama):
    """Six checkpoints: the final norm's weights squeezed onto few channels and released again, so RankMe falls and
    rises."""
    root = tmp_path_factory.mktemp("training")
    hf = AutoModelForCausalLM.from_pretrained(tiny_llama)
    original = hf.model.norm.weight.detach().clone()
    for step, power in ((0, 0.0), (10, 2.0), (100, 4.0), (500, 2.0), (1000, 1.0), (2000, 0.0)):
        with torch.no_grad():
            hf.model.norm.weight.copy_(original * torch.linspace(1, 0.2, 64) ** power)
        hf.save_pretrained(root / f"step-{step}")
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tiny_llama / file, root / f"step-{step}")
    return root


def test_a_trajectory_has_its_phases_losses_and_correlations(stories, texts, training, tmp_path):
    task = tmp_path / "task.csv"
    task.write_text("step,score\n0,0.1\n10,0.2\n100,0.3\n500,0.4\n1000,0.5\n2000,0.6\n")
    result, context = probe(stories, texts, checkpoints=(str(training),), task=str(task), ngram=str(texts))
    course = result.tables["layers"]
    assert course["step"].to_list() == [0, 10, 100, 500, 1000, 2000] and course["checkpoint"][1] == "step-10"
    assert result.tables["phases"].select("phase", "start_step", "end_step").rows() == [
        ("warm-up", 0, 100),
        ("entropy-seeking", 100, 2000),
    ]
    assert any("Phases of 6 checkpoints are told by the errors" in said for said in context.warnings)
    # every checkpoint is measured as it is alone
    alone, _ = probe(load(str(training / "step-100")), texts)
    assert abs(alone.tables["layers"]["rankme"][0] - course["rankme"][2]) < 1e-9
    correlation = result.tables["correlation"]
    found = correlation.filter(measure="rankme", against="loss", method="spearman").row(0, named=True)
    losses = result.tables["checkpoints"]["loss"].to_numpy()
    assert abs(found["value"] - spearmanr(course["rankme"].to_numpy(), losses).statistic) < 1e-9 and found["n"] == 6
    assert set(correlation["against"]) == {"loss", "memorisation", "task: score"}
    # memorisation: the model's token probabilities against the n-gram model's, over the same tokens
    ids = [row.to_list() for row in result.tables["inputs"]["ids"][:8]]
    text = [stories.encode(t, bos=False) for t in pl.read_ndjson(texts)["text"]]
    words = pl.read_ndjson(texts)["text"].to_list()
    own = [words[row] for row in result.tables["inputs"]["row"][:8]]  # no text counts in its own n-grams
    theirs = np.concatenate(
        [count([t for t, w in zip(text, words) if w != mine], [row]).probabilities[0] for row, mine in zip(ids, own)]
    )
    mine = -np.concatenate(
        [x[0] for x in evaluation.final_state_losses(load(str(training / "step-2000")), ids, [("none", None)])]
    )
    assert abs(result.tables["checkpoints"]["memorisation"][-1] - spearmanr(mine, theirs).statistic) < 1e-6


def test_a_task_table_says_which_checkpoints_it_lacks(stories, texts, training, tmp_path):
    task = tmp_path / "task.csv"
    task.write_text("step,score\n7,0.1\n70,0.2\n")
    options = {
        "checkpoints": (str(training),),
        "task": str(task),
        "loss_rows": 0,
        "ablate": (),
        "limit": 70,
        "draws": 0,
        "curve": False,
    }
    with pytest.raises(
        InputError,
        match="no row is of a checkpoint that is measured; the checkpoints have steps 0, 10, .* the table 7, 70",
    ):
        probe(stories, texts, **options)
    task.write_text("step,score\n0,0.1\n10,NaN\n100,0.3\n500,0.4\n1000,0.2\n")
    result, context = probe(stories, texts, **options)
    assert any("no row for 1 of 6 checkpoints (2000)" in w for w in context.warnings)
    found = (
        result.tables["correlation"]
        .filter(measure="rankme", against="task: score", method="spearman")
        .row(0, named=True)
    )
    rankme = result.tables["layers"]["rankme"].to_numpy()[[0, 2, 3, 4]]  # a NaN cell is a missing one
    assert found["n"] == 4 and abs(found["value"] - spearmanr(rankme, [0.1, 0.3, 0.4, 0.2]).statistic) < 1e-9


def test_checkpoints_are_found_and_bad_ones_refused(stories, training, tmp_path):
    found = checkpoints.find(stories, [str(training / "step-500"), str(training / "step-10")])
    assert [(name, step) for name, step, _ in found] == [("step-10", 10), ("step-500", 500)]
    assert checkpoints.find(stories, [])[0][:2] == ("tiny-llama", None)
    names = (
        "step1000-tokens2B",
        "main@step-7",
        "final",
        "checkpoint-500",
        "run/checkpoint_12",
        "ckpt-3",
        "global_step40",
    )
    assert [checkpoints.step_of(n) for n in names] == [1000, 7, None, 500, 12, 3, 40]
    trainer = tmp_path / "trainer"  # as the Hugging Face Trainer writes them
    for step in (500, 60):
        shutil.copytree(training / f"step-{'500' if step == 500 else '10'}", trainer / f"checkpoint-{step}")
    assert [pair[:2] for pair in checkpoints.find(stories, [str(trainer)])] == [
        ("checkpoint-60", 60),
        ("checkpoint-500", 500),
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="same step 10"):
        checkpoints.find(stories, [str(training), str(training / "step-10")])
    with pytest.raises(InputError, match="no checkpoint"):
        checkpoints.find(stories, [str(tmp_path / "empty")])
    with pytest.raises(InputError, match="another tokenizer"):
        checkpoints.load_like("organism", stories)


def test_a_step_of_what_has_no_revisions_is_refused_with_what_there_is(stories, training):
    for entry in ("step-100", "step-999", f"{training / 'step-10'}@step-100", "organism@step-7", "organism@main"):
        with pytest.raises(InputError, match="no (revision|organism)"):
            for _, _, open_it in checkpoints.find(stories, ["organism@step-100", entry]):
                open_it()
    one = load(str(training / "step-10"))
    with pytest.raises(InputError, match=r"There are .*step-0, .*step-2000"):
        checkpoints.find(one, ["step-100", "step-500"])
    organism = load("organism")
    with pytest.raises(InputError, match=r"no revision 'step-300'.*organism@step-"):
        checkpoints.find(organism, ["step-300"])


def test_checkpoints_of_the_same_weights_are_warned_of(stories, texts, training, tmp_path):
    for step in (10, 20):
        shutil.copytree(training / "step-10", tmp_path / "run" / f"step-{step}")
    shutil.copytree(training / "step-0", tmp_path / "run" / "step-0")
    options = {"limit": 40, "loss_rows": 0, "ablate": (), "draws": 0, "curve": False}
    result, context = probe(stories, texts, checkpoints=(str(tmp_path / "run"),), **options)
    twins = [warning for warning in context.warnings if "have the same weights" in warning]
    assert len(twins) == 1 and "step-10 and step-20" in twins[0]
    assert "weights" not in result.tables and result.tables["layers"]["checkpoint"].n_unique() == 3


def test_revisions_of_a_hub_model_are_found_in_the_cache_without_a_network(training, texts, tmp_path, monkeypatch):
    """`name@revision` against a cache laid out as the hub client does: two branches of one repository."""
    from huggingface_hub import constants

    hub = tmp_path / "hub"
    for number, (branch, step) in enumerate((("step10", "step-10"), ("step100", "step-100"), ("main", "step-2000"))):
        repo = hub / "models--lab--tiny"
        commit = f"{number:040x}"
        shutil.copytree(training / step, repo / "snapshots" / commit)
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / branch).write_text(commit)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setenv("HF_HUB_CACHE", str(hub))
    main = load("lab/tiny")
    options = {"limit": 70, "loss_rows": 0, "ablate": (), "draws": 0, "curve": False}
    result, _ = probe(main, texts, checkpoints=("lab/tiny@step100", "step10"), **options)
    assert result.tables["layers"].select("checkpoint", "step").rows() == [("step10", 10), ("lab/tiny@step100", 100)]
    for step, rankme in zip(("step-10", "step-100"), result.tables["layers"]["rankme"]):
        alone, _ = probe(load(str(training / step)), texts, **options)
        assert abs(alone.tables["layers"]["rankme"][0] - rankme) < 1e-9
    with pytest.raises(InputError, match="The checkpoint lab/tiny@absent cannot be loaded"):
        probe(main, texts, checkpoints=("lab/tiny@absent",), **options)


def test_a_linear_model_with_skewed_classes_falls_rises_and_falls():
    """The paper's toy (§3.3): logits W θ x, cross-entropy, more classes than dimensions; with balanced classes and as
    many dimensions as classes the rank only grows."""

    def course(frequencies, width, steps=4000):
        rng = np.random.default_rng(0)
        share = np.array(frequencies) / sum(frequencies)
        labels = np.repeat(np.arange(len(share)), np.round(share * 60).astype(int))
        x = np.eye(len(share))[labels]
        theta, weight = 0.05 * rng.standard_normal((width, len(share))), 0.05 * rng.standard_normal((len(share), width))
        out = []
        for _ in range(steps):
            features = x @ theta.T
            out.append(spectra.from_features(torch.tensor(features)).rankme)
            logits = features @ weight.T
            p = np.exp(logits - logits.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            error = (p - x) / len(x)
            theta, weight = theta - 0.5 * (weight.T @ error.T @ x), weight - 0.5 * (error.T @ features)
        return np.array(out)

    pick = np.unique(np.round(np.geomspace(1, 3999, 40)).astype(int))
    skewed = phases.segment(pick, course((8, 4, 2, 1), 2)[pick], error=0.002, rng=np.random.default_rng(0))
    assert [p.name for p in skewed] == ["warm-up", "entropy-seeking", "compression-seeking"]
    control = phases.segment(pick, course((1, 1, 1, 1), 4)[pick], error=0.002, rng=np.random.default_rng(0))
    assert control[-1].name == "entropy-seeking"


# maps


@pytest.mark.slow
def test_maps_are_principal_components_and_umap_with_its_seed(stories, tiny_llama, texts):
    threads = torch.get_num_threads()
    result, _ = probe(stories, texts, map=("pca", "umap"), colour="kind")
    assert torch.get_num_threads() == threads
    frame = result.tables["map"]
    pca = frame.filter(method="pca").sort("row")
    states = hidden_states(tiny_llama, result.tables["inputs"]["ids"])[-1]
    v = np.linalg.svd(states - states.mean(0), full_matrices=False)[2][:2]
    expected = (states - states.mean(0)) @ v.T
    for k, column in enumerate(("x", "y")):
        assert abs(abs(np.corrcoef(pca[column].to_numpy(), expected[:, k])[0, 1]) - 1) < 1e-6
    # a row of the map is that of the data file, as in `inputs`
    few, _ = probe(stories, texts, map=("pca",), colour="kind", min_length=8, limit=60, map_rows=20)
    here, inputs = few.tables["map"], few.tables["inputs"]
    kinds = pl.read_ndjson(texts)["kind"]
    assert (
        set(here["row"]) < set(inputs["row"])
        and here["row"].max() > 60
        and here["colour"].to_list() == [kinds[row] for row in here["row"]]
    )
    words = pl.read_ndjson(texts)["text"]
    assert all(words[row][:200] == text[:200] for row, text in here.select("row", "text").iter_rows())
    assert pca["colour"].to_list()[:3] == ["a", "b", "a"] and frame["seed"].n_unique() == 1
    umap = frame.filter(method="umap")
    assert umap.height == 150 and umap["x"].is_finite().all()


def test_umap_is_not_imported_unless_used():
    import subprocess
    import sys

    code = "import sys, probes.representation_geometry, probes.concept_depth; sys.exit('umap' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# bad input


def test_bad_input_is_refused_before_a_model_is_loaded(texts, tmp_path):
    table = tmp_path / "task.csv"
    table.write_text("step,score\n1,good\n")
    for config, message in (
        ({"colour": "absent"}, "no column 'absent'"),
        ({"fit_range": "40,5"}, "fit_range must grow"),
        ({"task": str(table)}, "numbers only"),
        ({"ngram": str(tmp_path / "absent.txt")}, "absent.txt"),
        ({"max_length": 1}, "max_length"),
        ({"min_length": 30, "max_length": 20}, "no text can have at least min_length=30"),
    ):
        with pytest.raises(InputError, match=message):
            runs.prepare("representation-geometry", config, texts)


def test_activations_that_are_not_finite_are_named(tiny_llama, texts):
    model = load(str(tiny_llama))
    model.hf.model.layers[2].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"resid_post\.2 are NaN"):
        probe(model, texts, layers="all")


def test_texts_without_the_token_and_features_without_a_spectrum_are_named(stories, texts, tmp_path):
    with pytest.raises(InputError, match=r"texts.jsonl, row \d+: the text has \d+ tokens, and token=12 is beyond them"):
        probe(stories, texts, token=12)
    same = tmp_path / "same.jsonl"
    same.write_text(json.dumps({"text": "Tom saw the dog"}) + "\n")
    same.write_text(same.read_text() * 80)
    result, context = probe(stories, same, loss_rows=0, draws=0, curve=False)
    assert result.tables["layers"]["rankme"][0] is None
    assert any("features at final_norm of tiny-llama are the same for every text" in w for w in context.warnings)


@pytest.mark.slow
def test_the_probe_passes_the_conformance_battery(stories, texts, training):
    config = {
        "fit_range": "5,20",
        "limit": 30,
        "draws": 20,
        "loss_rows": 4,
        "ablate": (4,),
        "layers": "all",
        "ngram": str(texts),
        "checkpoints": (str(training / "step-0"), str(training / "step-10")),
    }
    check_probe("representation-geometry", stories, config=config, data=texts)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ('{"step": 0.5, "x": 1}', "whole ones in the column step"),
        ('{"step": NaN, "x": 1}', "row 1: the field 'step' is empty"),
        ('{"step": 1, "x": Infinity}', "row 1: the field 'x' is infinite"),
        ('{"step": 1, "x": 1}\n{"step": 1.0, "x": 2}', "each step once"),
    ],
)
def test_a_step_is_a_whole_number_and_its_numbers_are_finite(tmp_path, rows, words):
    from probes.representation_geometry.trajectory import read_task

    (tmp_path / "task.jsonl").write_text(rows + "\n")
    with pytest.raises(InputError, match=words):
        read_task(str(tmp_path / "task.jsonl"))

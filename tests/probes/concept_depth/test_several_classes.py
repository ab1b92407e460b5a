"""Sets of more than two classes: scikit-learn's multinomial regression done slowly, chance of 1/k, nulls that hold."""

import json

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, f1_score, recall_score, roc_auc_score
from transformers import AutoModelForCausalLM

from probes import concept_depth
from probes.concept_depth import Config, class_measures, layer_curves, linear_probe, mean_difference, multinomial_probe
from probes.concept_depth.above_chance import above_chance
from probes.concept_depth.chosen_sets import read_sets
from probes.concept_depth.class_measures import on_the_scale_of_two
from probes.concept_depth.concept_sets import ConceptSet
from probes.concept_depth.depth_points import points
from probes.concept_depth.held_out import courses_of, folds_of, solve
from probes.concept_depth.label_shuffles import arrangements
from probes.concept_depth.set_splits import split
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.models.loading import load
from workbench.runs import execution as runs

SHORT = {"site": "resid_post", "draws": 100, "shuffles": 0, "control_tasks": 0, "causal": "off"}
KINDS = {
    "animal": ["cat", "dog", "bird", "fish", "horse"],
    "food": ["bread", "cake", "apple", "soup", "egg"],
    "place": ["park", "house", "school", "garden", "shop"],
    "thing": ["ball", "box", "hat", "book", "cup"],
}


@pytest.fixture(scope="module")
def stories(tiny_llama):
    return load(str(tiny_llama))


@pytest.fixture
def kinds(tmp_path):
    """Of four kinds five words each, of a word six texts: 120 rows in 20 groups."""
    frames = ["Tom saw the {}", "Lily likes the {}", "Where is the {}", "The {}", "It was a {}", "Look at the {}"]
    rows = [
        {"text": frame.format(word), "label": kind, "group": word}
        for kind, words in KINDS.items()
        for word in words
        for frame in frames
    ]
    path = tmp_path / "kinds.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# the classifier


@pytest.mark.parametrize(
    ("n", "d", "k", "c"), [(240, 12, 4, 1.0), (60, 90, 3, 1.0), (150, 30, 5, 0.05), (90, 20, 2, 3.0)]
)
def test_the_multinomial_probe_is_scikit_learns_at_its_optimum(n, d, k, c):
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(3, n, d, generator=generator, dtype=torch.float64)
    labels = np.arange(n) % k
    x[1, :, 0] *= 50  # one massive dimension
    x[2, :, 1] += 1.5 * torch.from_numpy(labels)
    found = multinomial_probe.fit(x, labels, c=c)
    assert found.converged.all() and found.coef.shape == (3, k, d)
    for layer in range(3):
        rows = x[layer].numpy()
        theirs = LogisticRegression(C=c if k > 2 else 2 * c, tol=1e-12, max_iter=100_000).fit(rows, labels)
        if k == 2:  # scikit-learn has one row of weights for two classes, and the penalty of one
            assert np.allclose((found.coef[layer, 1] - found.coef[layer, 0]).numpy()[None], theirs.coef_, atol=1e-4)
            continue
        assert np.abs(found.coef[layer].numpy() - theirs.coef_).max() < 1e-4
        assert np.abs(found.intercept[layer].numpy() - (theirs.intercept_ - theirs.intercept_.mean())).max() < 1e-3
        assert np.allclose(1 / (1 + np.exp(-found.scores(x)[layer])), theirs.predict_proba(rows), atol=1e-4)


def test_of_two_classes_it_is_the_probe_of_two_with_c_doubled():
    x = torch.randn(2, 80, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = np.arange(80) % 2
    several, two = (
        multinomial_probe.fit(x, labels, c=0.5, standardize=True),
        linear_probe.fit(x, labels, c=1.0, standardize=True),
    )
    assert np.allclose(several.scores(x)[..., 1], two.scores(x), atol=1e-5)


@pytest.mark.parametrize("standardize", [False, True])
def test_the_nearest_mean_of_two_classes_is_the_difference_of_means(standardize):
    x = torch.randn(2, 60, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 40
    labels = np.arange(60) % 2
    two = mean_difference.fit(x, labels, standardize=standardize).scores(x)
    assert np.allclose(mean_difference.nearest_mean(x, labels, standardize=standardize).scores(x)[..., 1], two)
    three = np.arange(60) % 3
    guess = mean_difference.nearest_mean(x, three, standardize=standardize).scores(x).argmax(-1)
    for layer, rows in enumerate(x.numpy()):
        rows = rows / rows.std(0) if standardize else rows
        away = [np.linalg.norm(rows - rows[three == j].mean(0), axis=1) for j in range(3)]
        assert np.array_equal(guess[layer], np.argmin(away, axis=0))


def test_a_class_without_rows_is_refused():
    with pytest.raises(InputError, match="needs rows of each"):
        multinomial_probe.fit(torch.randn(1, 6, 3), np.array([0, 0, 2, 2, 0, 2]))


# what is measured


def test_measures_and_their_resamples_are_scikit_learns():
    rng, n, k = np.random.default_rng(0), 90, 4
    labels = rng.permutation(np.arange(n) % k)
    z = rng.standard_normal((2, n, k)) + 1.2 * np.eye(k)[labels]
    scores = multinomial_probe.log_odds(torch.from_numpy(z)).numpy()
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    counts = rng.multinomial(n, np.full(n, 1 / n), 3).astype(float)
    found, drawn = class_measures.metrics(scores, labels), class_measures.resampled_metrics(scores, labels, counts)
    for weight, measured in [(None, {m: v[None] for m, v in found.items()}), *((c, drawn) for c in counts)]:
        row = 0 if weight is None else int(np.flatnonzero((counts == weight).all(1))[0])
        for layer in range(2):
            guess = p[layer].argmax(1)
            slow = {
                "accuracy": np.average(guess == labels, weights=weight),
                "balanced_accuracy": balanced_accuracy_score(labels, guess, sample_weight=weight),
                "f1": f1_score(labels, guess, average="macro", sample_weight=weight),
                "auc": np.mean([roc_auc_score(labels == j, p[layer, :, j], sample_weight=weight) for j in range(k)]),
            }
            for name, value in slow.items():
                assert measured[name][row, layer] == pytest.approx(value, abs=1e-9), name
    assert found["auc"][0] == pytest.approx(roc_auc_score(labels, p[0], multi_class="ovr", average="macro"))
    assert np.allclose(class_measures.recalls(scores, labels)[1], recall_score(labels, p[1].argmax(1), average=None))


def test_points_of_k_classes_lie_where_those_of_two_would():
    """Chance is 1/k: half way from chance to 1 is 0.75 of two classes and 0.625 of four."""
    two = np.array([0.5, 0.5, 0.6, 0.75, 0.9, 0.91])
    assert on_the_scale_of_two(two, 2) is two
    for k in (3, 4, 10):
        several = 1 / k + (two - 0.5) / 0.5 * (1 - 1 / k)
        assert np.allclose(on_the_scale_of_two(several, k), two)
        found, expected = points(on_the_scale_of_two(several, k)), points(two)
        assert (
            found["jump"] == expected["jump"] == 2 / 6 and found["comprehension"] == expected["comprehension"] == 3 / 6
        )
    assert on_the_scale_of_two(np.array([0.25, 0.625, 1.0]), 4).tolist() == [0.5, 0.75, 1.0]


# a run


def test_a_run_is_one_text_per_forward_and_scikit_learn_in_the_same_folds(stories, tiny_llama, kinds):
    result = concept_depth.run(stories, Config(**SHORT), Context(data=kinds))
    inputs, (concept,) = result.tables["inputs"], read_sets(Config(), kinds)
    assert concept.classes == tuple(sorted(KINDS)) and set(inputs["label"]) == {0, 1, 2, 3}
    fold = inputs["fold"].to_numpy()
    assert inputs.group_by("group").agg(n=pl.col("fold").n_unique())["n"].max() == 1
    hf = AutoModelForCausalLM.from_pretrained(tiny_llama, attn_implementation="eager")
    with torch.no_grad():
        states = [
            torch.stack(hf(torch.tensor([ids.to_list()]), output_hidden_states=True).hidden_states[1:])[:, 0, -1]
            for ids in inputs["ids"]
        ]
    labels = inputs["label"].to_numpy()
    layer = 1  # hidden_states of the last layer are behind the final norm; this one is not
    x = torch.stack(states)[:, layer].double().numpy()
    guess, aucs = np.empty(len(labels), int), []
    for k in range(5):
        train, test = fold != k, fold == k
        assert set(labels[train]) == set(labels[test]) == {0, 1, 2, 3}
        theirs = LogisticRegression(tol=1e-10, max_iter=100_000).fit(x[train], labels[train])
        guess[test] = theirs.predict(x[test])
        aucs.append(roc_auc_score(labels[test], theirs.predict_proba(x[test]), multi_class="ovr"))
    row = result.tables["layers"].row(layer, named=True)
    assert row["accuracy"] == pytest.approx((guess == labels).mean(), abs=0.01)
    assert row["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, guess), abs=0.01)
    assert row["f1"] == pytest.approx(f1_score(labels, guess, average="macro"), abs=0.01)
    assert row["auc"] == pytest.approx(np.mean(aucs), abs=0.005)
    assert row["majority_rate"] == 0.25 and row["n"] == 20 and row["n_test"] == 120
    classes = result.tables["classes"].filter(layer=layer)
    assert classes["label"].to_list() == sorted(KINDS) and classes["n"].unique().to_list() == [5]
    assert np.allclose(classes["recall"], recall_score(labels, guess, average=None), atol=0.04)
    assert (classes["ci_low"] < classes["recall"]).all() and (classes["recall"] <= classes["ci_high"]).all()


def test_every_class_has_its_direction_in_the_file(stories, kinds):
    run = runs.execute("concept-depth", stories, data=kinds, config=SHORT | {"split": "paper"})
    found = load_file(run.folder / "directions.safetensors")
    width = stories.width
    assert found["kinds/clean/direction"].shape == (stories.n_layers, 4, width)
    assert np.allclose(np.linalg.norm(found["kinds/clean/direction"], axis=-1), 1)
    inputs = run.table("inputs")
    test = inputs.filter(split="test")
    with torch.no_grad():
        x = torch.stack(
            [
                stories.hf(torch.tensor([ids.to_list()]), output_hidden_states=True).hidden_states[2][0, -1]
                for ids in test["ids"]
            ]
        ).double()
    direction, bias, scale = (found[f"kinds/clean/{part}"][1] for part in ("direction", "bias", "scale"))
    guess = (scale * (x.numpy() @ direction.T + bias)).argmax(1)
    assert (guess == test["label"].to_numpy()).mean() == pytest.approx(run.table("layers")["accuracy"][1], abs=1e-9)


def test_what_needs_two_classes_is_left_out_with_a_word(stories, kinds, tmp_path):
    for name in ("a", "b"):
        rows = [{"text": f"{name} {word} {i}", "label": i % 2} for i in range(10) for word in ("cat", "dog", "sea")]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = Config(**SHORT | {"transfer": True, "causal": "peak", "split": "paper", "groups": "no"})
    result = concept_depth.run(stories, config, Context(data=tmp_path))
    assert set(result.tables["transfer"]["train"]) == {"a", "b"} and set(result.tables["layers"]["dataset"]) == {
        "a",
        "b",
        "kinds",
    }
    assert result.summary["kinds: left out, for it needs two classes"] == "causal check, transfer"
    assert result.summary["kinds: classes"].startswith("4 (chance 1/4 = 0.25")
    assert "a: classes" not in result.summary and result.tables["causal"].is_empty()
    assert set(result.tables["classes"]["dataset"]) == {"kinds"}
    with pytest.raises(InputError, match="Transfer is between sets of two classes, and 1 of 2 are"):
        concept_depth.run(stories, Config(**SHORT, transfer=True, sets=("a", "kinds")), Context(data=tmp_path))
    pair = concept_depth.run(stories, Config(**SHORT, pair=("food", "place")), Context(data=kinds))
    assert pair.tables["classes"].is_empty() and pair.tables["sets"]["n_classes"].to_list() == [2]


def test_too_many_labels_are_refused_before_a_model_is_loaded(tmp_path):
    path = tmp_path / "names.jsonl"
    path.write_text("".join(json.dumps({"text": f"t {i}", "label": f"name {i % 40}"}) + "\n" for i in range(200)))
    with pytest.raises(InputError, match="40 different labels .* 20 classes are the most; choose two with pair=a,b"):
        runs.prepare("concept-depth", {}, path)
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps({"text": f"t {i}", "label": i % 3}) + "\n" for i in range(10)))
    with pytest.raises(InputError, match="3 rows in its smallest class: too few for 5 folds"):
        runs.prepare("concept-depth", {}, few)


# nulls


def test_labels_of_groups_that_say_nothing_are_above_chance_in_one_set_in_twenty():
    """Groups of three rows that look alike, one class of three each, drawn at random: the shuffles keep the groups. At
    most 15 of 150 (three standard errors)."""
    found, level = 0, []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(30), 3)
        labels = rng.permutation(np.arange(30) % 3)[groups]
        x = rng.standard_normal((3, 30, 5))[:, groups] + 0.3 * rng.standard_normal((3, 90, 5))
        features = list(torch.from_numpy(x))
        concept = ConceptSet("null", ("t",) * 90, labels, ("a", "b", "c"), tuple(map(str, groups)))
        tests, by_group = split(concept, "kfold", folds=3, rng=rng)
        assert by_group

        others = layer_curves.shuffled_labels(labels, tests, groups, shuffles=20, rng=rng)
        problems = [problem for own in (labels, *others) for problem in folds_of(own, tests)]
        scores, *courses = courses_of(solve(features, problems, mean_difference.nearest_means).scores, len(tests))
        value = class_measures.metrics(scores, labels[np.concatenate(tests)])["balanced_accuracy"]
        rows, halves = np.concatenate(tests), [np.arange(45), np.arange(45, 90)]
        ways = arrangements(labels, tests, groups)
        control = layer_curves.control_of(courses, [own[rows] for own in others], halves, ways, 3, 3)
        scaled = on_the_scale_of_two(value, 3), on_the_scale_of_two(control.balanced, 3)
        found += above_chance(*scaled, control.ways).above.any()
        level.append(value.mean() - control.balanced.mean())
    assert found <= 15 and abs(np.mean(level)) < 0.02, (found, np.mean(level))

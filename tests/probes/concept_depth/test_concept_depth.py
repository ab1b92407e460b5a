"""Concept depth against the official procedure done slowly, planted truths, and a model whose onsets are known by
construction."""

import json
from math import erf

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score
from transformers import AutoModelForCausalLM

from probes import concept_depth
from probes.concept_depth import Config, linear_probe
from probes.concept_depth import depth_points as depth
from probes.concept_depth.above_chance import above_chance
from probes.concept_depth.chosen_sets import material, read_sets
from probes.concept_depth.layer_features import read_features
from probes.concept_depth.precision import in_precision
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.models.loading import load
from workbench.organisms import circuits
from workbench.runs import execution as runs
from workbench.runs.checks import check_probe
from workbench.stats.intervals import resample_counts


@pytest.fixture(scope="module")
def xor(tmp_path_factory):
    folder = circuits.folder("circuit-xor", tmp_path_factory.mktemp("circuits"))
    return load(str(folder)), folder, circuits.truth(folder)


@pytest.fixture(scope="module")
def stories(tiny_llama):
    return load(str(tiny_llama))


@pytest.fixture
def translations(tmp_path):
    """354 statements, each about one of 59 words, half of them true: a file of statements as published sets are."""
    words = "con uno tener mar sol luz pan rey ley paz fin sur pie voz mes red sal gas ser dar ver oir ir".split()
    words += [
        f"{a}{b}" for a in ("cas", "per", "gat", "lib", "mes", "sill") for b in ("a", "o", "ita", "ote", "eros", "ura")
    ]
    english = "to see|the sea|a dog|the sun|to run|bread|a small house|one|the old tree".split("|")
    rows = [
        f"The Spanish word '{word}' means '{english[(i + k * k) % len(english)]}'.,{k % 2}"
        for i, word in enumerate(words)
        for k in range(6)
    ]
    path = tmp_path / "translations.csv"
    path.write_text("statement,label\n" + "\n".join(rows) + "\n")
    return path


def probe(model, data, **config):
    short = {"split": "paper", "draws": 100, "shuffles": 0, "control_tasks": 0, "causal": "off"}
    return concept_depth.run(model, Config(**short | config), Context(data=data))


def curve(result, dataset, condition="clean", column="accuracy"):
    return result.tables["layers"].filter(dataset=dataset, condition=condition).sort("layer")[column].to_numpy()


# planted truths


def test_a_planted_shift_jumps_where_it_starts_and_reaches_bayes_accuracy():
    generator = torch.Generator().manual_seed(0)
    n, layers, start, width = 6000, 8, 3, 20
    y = (torch.arange(n) % 2).double()
    for delta in (4.0, 1.0):
        x = torch.randn(layers, n, width, generator=generator, dtype=torch.float64)
        x[start:, :, 0] += (y - 0.5) * delta
        fitted = linear_probe.fit(x[:, :3000], y[:3000])
        accuracy = linear_probe.metrics(fitted.scores(x[:, 3000:]), y[3000:])["accuracy"]
        bayes = 0.5 * (1 + erf(delta / 2 / 2**0.5))
        assert np.abs(accuracy[:start] - 0.5).max() < 0.04 and np.abs(accuracy[start:] - bayes).max() < 0.02
        found = depth.points(accuracy)
        assert found["jump"] == start / layers and found["converge_stable"] == (start + 1) / layers


@pytest.mark.parametrize("site", ["resid_post", "mlp_in", "resid_pre", "attn_out"])
def test_concepts_of_the_circuit_become_readable_exactly_where_they_are_written(xor, site):
    model, folder, truth = xor
    for concept in ("colour", "animal", "xor"):
        result = probe(model, folder / f"{concept}.jsonl", site=site)
        onset, found = truth["onset"][concept][site], curve(result, concept)
        if site == "attn_out":  # readable in the layer that writes it, and nowhere else
            read = [onset] if onset is not None else []
        else:
            read = range(onset, model.n_layers) if onset is not None else []
        for layer, accuracy in enumerate(found):
            assert accuracy == 1 if layer in read else abs(accuracy - 0.5) < 0.15, (concept, layer)
        jump = result.tables["depth"]["jump"][0]
        if site != "attn_out":
            assert jump == (onset / model.n_layers if onset else None)


def test_shuffled_labels_stay_at_chance_and_what_is_above_them_is_the_rest(xor):
    model, folder, truth = xor
    result = probe(model, folder / "animal.jsonl", site="resid_post", shuffles=20, split="kfold", control_tasks=5)
    layers = result.tables["layers"]
    assert (layers["control_accuracy"] - 0.5).abs().max() < 2 / np.sqrt(600)
    assert np.allclose(layers["above_shuffled"], layers["accuracy"] - layers["control_accuracy"])
    assert layers["above_chance"].to_list() == [
        layer >= truth["onset"]["animal"]["resid_post"] for layer in range(model.n_layers)
    ]
    assert (layers["majority_rate"] >= 0.5).all() and (layers["majority_rate"] < 0.55).all()
    there = layers.filter(pl.col("selectivity").is_not_null())
    assert np.allclose(there["selectivity"], there["accuracy"] - there["control_task_accuracy"])
    row = result.tables["depth"].row(0, named=True)
    assert row["n_shuffles"] == 20 == result.tables["controls"].height
    assert row["false_positive_rate"] == result.tables["controls"]["jump"].is_not_null().mean()
    assert row["false_positive_low"] <= row["false_positive_rate"] <= row["false_positive_high"]


def chance_jumps(n_test, n_layers=6, draws=4000):
    """How often a course of independent coin-flip accuracies has a step of 10 %, drawn without the project's code."""
    hits = np.random.default_rng(5).binomial(n_test, 0.5, (draws, n_layers))
    return np.mean([any(b >= 1.1 * a for a, b in zip(course, course[1:])) for course in hits.tolist()])


@pytest.mark.parametrize(("n_test", "shuffles"), [(40, 60), (200, 60), (1200, 30)])
def test_shuffled_labels_jump_as_often_as_coin_flips_do(n_test, shuffles):
    """Probes of pure noise on shuffled labels, 6 layers, against coin flips: 0.96 at 40 test rows, 0.67 at 200, 0.05 at
    1,200."""
    generator = torch.Generator().manual_seed(0)
    n = 2 * n_test
    x, rng, accuracy = torch.randn(6, n, 5, generator=generator), np.random.default_rng(0), []
    for _ in range(shuffles):
        y = rng.permutation(np.arange(n) % 2)
        fitted = linear_probe.fit(x[:, :n_test], y[:n_test])
        accuracy.append(linear_probe.metrics(fitted.scores(x[:, n_test:]), y[n_test:])["accuracy"])
    accuracy = np.array(accuracy)
    row = depth.row_of_points(accuracy[0], None, accuracy, above_chance(accuracy[0], accuracy, 1e9))
    expected = chance_jumps(n_test)
    assert abs(expected - {40: 0.96, 200: 0.67, 1200: 0.05}[n_test]) < 0.02
    assert abs(row["false_positive_rate"] - expected) < 3.5 * np.sqrt(expected * (1 - expected) / shuffles) + 0.01


def test_the_false_positive_rate_pools_the_clean_condition_only_and_warns_where_it_is_high(xor):
    model, folder, _ = xor
    context = Context(data=folder)
    config = Config(
        split="paper",
        control_tasks=0,
        draws=100,
        shuffles=4,
        causal="off",
        sets=("animal", "colour"),
        noise=True,
        precision=("float32",),
        limit=60,
    )
    result = concept_depth.run(model, config, context)
    controls, pooled = (
        result.tables["controls"].filter(condition="clean"),
        result.summary["jump rule on shuffled labels"],
    )
    assert result.tables["controls"].height == 3 * controls.height and pooled["n"] == controls.height == 8
    assert pooled["value"] == controls["jump"].is_not_null().mean()
    assert any("the paper's jump rule fires in" in w for w in context.warnings) and any(
        "tested on 24 rows" in w for w in context.warnings
    )


def test_the_auc_of_folds_lies_in_its_interval_and_is_scikit_learns():
    """Folds whose probes are on different scales: the mean of the folds' AUC, and the same mean in every resample."""
    rng, inside = np.random.default_rng(0), 0
    labels, starts = np.tile([0, 1], 45), [0, 30, 60, 90]
    for _ in range(20):
        scores = (rng.standard_normal((2, 90)) + 0.8 * labels) * np.repeat([1, 10, 0.1], 30) + np.repeat(
            [0.0, 3, -1], 30
        )
        counts = resample_counts(90, 200, rng)
        mean, drawn = linear_probe.auc_of_folds(scores, labels, counts, starts)
        folds = [slice(a, b) for a, b in zip(starts, starts[1:])]
        assert np.allclose(
            mean, [np.mean([roc_auc_score(labels[f], row[f]) for f in folds]) for row in scores], atol=1e-12
        )
        slow = np.mean([roc_auc_score(labels[f], scores[1, f], sample_weight=counts[7, f]) for f in folds])
        assert abs(drawn[7, 1] - slow) < 1e-9
        low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
        inside += int(((low < mean) & (mean < high)).all())
    assert inside == 20


# the official procedure, slowly


def test_numbers_are_those_of_one_text_per_forward_and_scikit_learn(stories, tiny_llama, translations):
    result = probe(stories, translations, split="code", template="plain")
    inputs = result.tables["inputs"]
    hf = AutoModelForCausalLM.from_pretrained(tiny_llama, attn_implementation="eager")
    rows = []
    seen = {}
    for i, layer in enumerate(hf.model.layers):
        layer.post_attention_layernorm.register_forward_hook(
            lambda _m, _a, out, i=i: seen.__setitem__(i, out[0, -1].numpy())
        )
    for ids in inputs["ids"]:
        with torch.no_grad():
            hf(torch.tensor([ids.to_list()]))
        rows.append([seen[i] for i in range(len(hf.model.layers))])
    features, labels = np.array(rows), inputs["label"].to_numpy()
    test = (inputs["split"] == "test").to_numpy()
    assert test.sum() == int(np.ceil(0.4 * len(labels)))
    for layer in range(features.shape[1]):
        x = features[:, layer].astype(np.float64)
        theirs = LogisticRegression(max_iter=100_000, tol=1e-8).fit(x[~test], labels[~test])
        guess, score = theirs.predict(x[test]), theirs.decision_function(x[test])
        found = result.tables["layers"].row(layer, named=True)
        assert abs(found["accuracy"] - (guess == labels[test]).mean()) < 0.005
        assert abs(found["f1"] - f1_score(labels[test], guess)) < 0.01
        assert abs(found["auc"] - roc_auc_score(labels[test], score)) < 0.005
        assert found["ci_low"] <= found["accuracy"] <= found["ci_high"] and found["error"] < 1e-6


def test_mean_and_chosen_token_features_are_what_they_say(stories, tmp_path):
    path = write(
        tmp_path,
        "set.jsonl",
        [{"text": f"Tom saw {i} dogs" + " and cats" * (i % 3), "label": i % 2} for i in range(30)],
    )
    from workbench.store.activation_store import Store

    for token in ("mean", -2):
        features = read_features(
            stories,
            [stories.encode(t) for t in ("Tom saw dogs", "A cat")],
            Config(site="resid_post", token=token, sinks="keep"),
            Context(store=Store(tmp_path / "store")),
        )
        with torch.no_grad():
            states = stories.hf(
                torch.tensor([stories.encode("Tom saw dogs")]), output_hidden_states=True
            ).hidden_states[2][0]
        torch.testing.assert_close(features[1][0], states.mean(0) if token == "mean" else states[-2], atol=1e-5, rtol=0)
        assert probe(stories, path, token=token).tables["layers"].height == stories.n_layers


# conditions


def test_conditions_share_the_split_and_full_precision_changes_nothing(stories, translations):
    result = probe(stories, translations, noise=True, precision=("float32", "bfloat16", "int8"), limit=60)
    assert result.tables["depth"]["condition"].to_list() == ["clean", "noise", "float32", "bfloat16", "int8 weights"]
    inputs = result.tables["inputs"]
    clean, noise = inputs.filter(condition="clean"), inputs.filter(condition="noise")
    assert clean["split"].to_list() == noise["split"].to_list() and inputs["row"].n_unique() == inputs.height
    assert all(stories.decode(row.to_list())[:4] in ("aaa ", "bbb ") for row in noise["ids"])
    assert np.array_equal(curve(result, "translations"), curve(result, "translations", "float32"))
    assert not np.array_equal(
        curve(result, "translations", column="auc"), curve(result, "translations", "int8 weights", "auc")
    )


def test_int8_rounds_every_weight_by_at_most_half_a_step(stories):
    rounded = in_precision(stories, "int8", Context())
    before, after = stories.hf.model.layers[1].mlp.up_proj.weight, rounded.hf.model.layers[1].mlp.up_proj.weight
    step = before.abs().amax(1, keepdim=True) / 127
    assert ((after - before).abs() <= step / 2 * 1.0001).all() and not torch.equal(before, after)
    assert all(len(torch.unique(row)) <= 255 for row in after)
    assert torch.equal(rounded.hf.lm_head.weight, stories.hf.lm_head.weight)


def test_a_quantised_checkpoint_is_refused_with_the_reason(stories, monkeypatch):
    monkeypatch.setattr(stories.hf.config, "quantization_config", {"quant_method": "gptq"}, raising=False)
    with pytest.raises(InputError, match="quantised already"):
        in_precision(stories, "bfloat16", Context())


def test_folds_groups_and_the_penalty_path(stories, tmp_path):
    rows = [
        {"text": f"The {'dog' if i % 2 else 'cat'} number {i // 4} ran", "label": i % 2, "group": f"g{i // 4}"}
        for i in range(80)
    ]
    path = write(tmp_path, "pets.jsonl", rows)
    result = probe(stories, path, split="kfold", folds=4, c_path=(0.01, 100.0))
    inputs = result.tables["inputs"]
    assert (
        result.tables["sets"]["split_by_group"][0]
        and set(inputs["split"]) == {"test"}
        and sorted(set(inputs["fold"])) == [0, 1, 2, 3]
    )
    assert inputs.group_by("group").agg(pl.col("fold").n_unique())["fold"].max() == 1
    assert result.tables["layers"]["n_test"][0] == 80
    path_table = result.tables["path"]
    assert path_table.height == 2 * stories.n_layers and set(path_table["c"]) == {0.01, 100.0}


# does the model use it?


def test_the_causal_check_is_a_projection_done_by_hand(stories, tmp_path):
    rows = [
        {
            "text": f"{'Lily' if i % 2 else 'Tom'} went to the park {i // 2} times because",
            "label": i % 2,
            "answer": "girl" if i % 2 else "ball",
        }
        for i in range(60)
    ]
    result = probe(stories, write(tmp_path, "pronoun.jsonl", rows), site="resid_post", causal="all", random_draws=2)
    causal, inputs = result.tables["causal"], result.tables["inputs"].filter(split="test")
    words = [stories.encode(f"because {w}")[-1] for w in ("ball", "girl")]
    assert causal.height == 1 + 3 * stories.n_layers and causal["rows"].unique().to_list() == [inputs.height]
    alike = inputs["group"].n_unique()
    assert causal["n"].unique().to_list() == [alike] and alike < inputs.height, "rows that are alike are one"
    train = result.tables["inputs"].filter(split="train")

    def states(ids, layer):
        with torch.no_grad():
            return (
                stories.hf(torch.tensor([ids.to_list()]), output_hidden_states=True)
                .hidden_states[layer + 1][0, -1]
                .double()
            )

    layer = 2
    x = torch.stack([states(ids, layer) for ids in train["ids"]])
    direction = linear_probe.fit([x], train["label"].to_numpy()).coef[0]
    direction = direction / direction.norm()

    def hook(_module, _args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        hidden[:, -1] -= (hidden[:, -1].double() @ direction)[:, None].float() * direction.float()

    separations = []
    for edited in (False, True):
        handle = stories.hf.model.layers[layer].register_forward_hook(hook) if edited else None
        right, further = [], {0: [], 1: []}
        with torch.no_grad():
            for ids, label in zip(inputs["ids"], inputs["label"]):
                scores = stories.hf(torch.tensor([ids.to_list()])).logits[0, -1]
                right.append((scores[words[1]] > scores[words[0]]).item() == (label == 1))
                further[label].append((scores[words[1]] - scores[words[0]]).item())
        if handle:
            handle.remove()
        found = causal.filter(layer=layer if edited else -1, direction="probe" if edited else "none").row(0, named=True)
        assert abs(found["answer_accuracy"] - np.mean(right)) < 1e-9
        separations.append(np.mean(further[1]) - np.mean(further[0]))
        assert found["separation"] == pytest.approx(separations[-1], abs=1e-4)
        assert found["separation_low"] < found["separation"] < found["separation_high"]
    assert found["lost"] == pytest.approx(separations[0] - separations[1], abs=1e-4)
    random = causal.filter(layer=layer, direction="random")
    assert found["lost_to_random"] == pytest.approx(separations[0] - random["separation"].mean(), abs=1e-4)
    assert found["excess"] == pytest.approx(found["lost"] - found["lost_to_random"], abs=1e-9)
    assert found["excess_low"] < found["excess"] < found["excess_high"] and random["lost"].null_count() == 2
    assert causal.filter(direction="none")["changed"][0] == 0
    held_out = torch.stack([states(ids, layer) for ids in inputs["ids"]])
    held_out = held_out - held_out.mean(0)
    share = float((held_out @ direction).var() / held_out.var(dim=0).sum())
    assert abs(causal.filter(layer=layer, direction="probe")["removed_variance"][0] - share) < 1e-6 and 0 < share < 1


def test_the_model_is_not_said_to_answer_what_it_was_not_asked(stories, tmp_path):
    """cities without the prompt that asks for True or False: no causal rows; with it, there are."""
    path = tmp_path / "cities.csv"
    rows = [
        f"The city of {city} is in {said}.,{int(said == country)},{city},{said},{country}"
        for i, city in enumerate(
            f"{a}{b}" for a in ("Kras", "Lo", "Var", "Min", "Os") for b in ("dar", "dz", "na", "lo")
        )
        for country in (("Russia", "Poland")[i % 2],)
        for said in ("Russia", "Poland")
    ]
    path.write_text("statement,label,city,country,correct_country\n" + "\n".join(rows) + "\n")
    for template, asked in (("plain", False), ("file", True)):
        result = probe(stories, path, template=template, causal="peak", limit=20, groups="no", random_draws=1)
        assert (result.tables["causal"].height > 0) == asked == (result.tables["sets"]["answer1"][0] == "True")


# bad input


def write(tmp_path, name, rows):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_bad_sets_are_refused_before_a_model_is_loaded(tmp_path):
    one = write(tmp_path, "one.jsonl", [{"text": f"t{i}", "label": 1} for i in range(20)])
    many = write(tmp_path, "many.jsonl", [{"text": f"t{i}", "label": i % 21} for i in range(210)])
    few = write(tmp_path, "few.jsonl", [{"text": f"t{i}", "label": i % 2} for i in range(6)])
    for path, config, message in (
        (one, {}, "every row has the label"),
        (many, {}, "choose two with pair=a,b"),
        (few, {"split": "kfold"}, "too few for 5 folds"),
        (few, {"sets": "absent"}, "no concept file"),
    ):
        with pytest.raises(InputError, match=message):
            runs.prepare("concept-depth", config, path)


def test_a_folder_holds_several_sets_and_names_choose_among_them(tmp_path):
    for name in ("a", "b", "c"):
        write(tmp_path, f"{name}.jsonl", [{"text": f"{name} {i}", "label": i % 2} for i in range(20)])
    assert [s.name for s in read_sets(Config(), tmp_path)] == ["a", "b", "c"]
    assert [s.name for s in read_sets(Config(sets=("c", "a")), tmp_path)] == ["c", "a"]
    with pytest.raises(InputError, match="no concept set 'd'.*a, b, c"):
        read_sets(Config(sets=("d",)), tmp_path)


def test_shipped_sets_come_easiest_first_and_the_table_says_how_hard_they_are(stories):
    from workbench import organisms

    world = organisms.data("concepts/topic").parent
    for sets, config in (
        (read_sets(Config(), world), {}),
        (read_sets(Config(sets=("english",)), None), {"sets": ("english",)}),
    ):
        difficulty = [s.difficulty for s in sets]
        assert None not in difficulty and difficulty == sorted(difficulty) and len(set(difficulty)) > 2, config
    assert [s.name for s in read_sets(Config(sets=("coin", "topic")), world)] == ["coin", "topic"]
    shipped = material(Config(sets=("coin", "english", "english/plural")), "any")
    assert set(shipped) == {"english", "english/plural"} and all(path.exists() for path in shipped.values())
    result = probe(stories, world, sets=("coin", "english/plural"), limit=20, groups="no")
    assert result.tables["sets"].select("dataset", "difficulty").rows() == [("coin", 4), ("plural", 1)]


def test_a_token_that_a_text_does_not_have_is_named(stories, tmp_path):
    path = write(
        tmp_path,
        "short.jsonl",
        [{"text": "Tom saw the dog and the cat" if i != 6 else "Hi", "label": i % 2} for i in range(20)],
    )
    with pytest.raises(InputError, match="'short', row 7: the text has 3 tokens, and token=5"):
        probe(stories, path, token=5)


def test_what_float16_cannot_hold_is_blamed_on_the_store(tiny_llama, tmp_path):
    model = load(str(tiny_llama))
    model.hf.model.layers[3].post_attention_layernorm.weight[5] = 1e7
    path = write(tmp_path, "set.jsonl", [{"text": f"Tom saw {i} dogs", "label": i % 2} for i in range(20)])
    with pytest.raises(
        InputError, match=r"mlp_in\.3 for the set 'set' are too large for float16; set store_dtype=float32"
    ):
        probe(model, path, store_dtype="float16")


def test_a_text_beyond_the_context_is_named(stories, tmp_path):
    path = write(
        tmp_path, "long.jsonl", [{"text": "word " * (600 if i == 7 else 2), "label": i % 2} for i in range(20)]
    )
    with pytest.raises(InputError, match="'long', row 8"):
        probe(stories, path)


def test_activations_that_are_not_finite_are_named(tiny_llama, tmp_path):
    model = load(str(tiny_llama))
    model.hf.model.layers[3].post_attention_layernorm.weight[5] = float("inf")
    path = write(tmp_path, "set.jsonl", [{"text": f"Tom saw {i} dogs", "label": i % 2} for i in range(20)])
    with pytest.raises(InputError, match=r"mlp_in\.3 are NaN or infinite for the set 'set'"):
        probe(model, path)


def test_constant_features_give_a_guess_and_a_warning(stories, tmp_path):
    path = write(tmp_path, "same.jsonl", [{"text": "Tom saw the dog", "label": i % 2} for i in range(40)])
    context = Context(data=path)
    short = Config(split="paper", draws=100, shuffles=0, control_tasks=0, causal="off")
    result = concept_depth.run(stories, short, context)
    assert (result.tables["layers"]["accuracy"] == 0.5).all() and any(
        "the same for every text" in w for w in context.warnings
    )


@pytest.mark.slow
def test_the_probe_passes_the_conformance_battery(xor):
    model, folder, _ = xor
    config = {
        "split": "paper",
        "draws": 100,
        "shuffles": 2,
        "control_tasks": 2,
        "noise": True,
        "c_path": (0.1,),
        "limit": 40,
    }
    check_probe("concept-depth", model, config=config, data=folder / "animal.jsonl")

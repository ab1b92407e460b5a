"""The probe against the slow computation: one sample at a time through plain Hugging Face, `SAE.encode`, dense numpy in
float64."""

import numpy as np
import polars as pl
import pytest
import torch

from tests.support.selection_pool import execute, read, sentence, slow_vectors, write
from workbench.core.errors import InputError
from workbench.runs import execution as runs
from workbench.runs.checks import check_probe
from workbench.stats.near_duplicates import near_duplicates


@pytest.mark.parametrize(
    ("part", "aggregate"), [("all", "mean"), ("all", "sum"), ("all", "last"), ("response", "mean"), ("prompt", "mean")]
)
def test_scores_are_those_of_the_slow_computation(model, tiny_llama, material, tmp_path, part, aggregate):
    run = execute(
        model,
        material,
        tmp_path / "run",
        tokens=part,
        aggregate=aggregate,
        baselines=(),
        features=0,
        explain=0,
        max_tokens=300,
    )
    pool = slow_vectors(tiny_llama, material, read(material / "pool.jsonl"), part, aggregate)
    scores = run.table("scores")
    for name in ("sea", "park"):
        p = slow_vectors(tiny_llama, material, read(material / f"{name}.jsonl"), part, aggregate).mean(0)
        expected = np.array([np.minimum(z, p).sum() / np.maximum(z, p).sum() for z in pool])
        found = scores.filter(target=name).sort("row")
        np.testing.assert_allclose(found["score"].to_numpy(), expected, atol=1e-5)
        chosen = set(found.filter("selected")["row"])
        assert len(chosen) == 3 and min(expected[list(chosen)]) >= np.sort(expected)[-3] - 1e-5


@pytest.mark.parametrize("config", [{}, {"aggregate": "sum"}, {"tokens": "response"}, {"specials": True}], ids=str)
def test_what_all_samples_begin_with_is_read_once_and_changes_nothing(model, material, tmp_path, monkeypatch, config):
    from probes.data_selection import sample_vectors

    ran = []
    handle = model.hf.model.layers[0].register_forward_hook(
        lambda _m, args, _out: ran.append(args[0].shape[0] * args[0].shape[1])
    )
    config = {
        "template": "Below is a question about a place. Answer it in a few short sentences.\n{prompt}\n{response}",
        "max_tokens": 300,
    } | config
    once = execute(model, material, tmp_path / "once", **config)
    shared = sum(ran)
    ran.clear()
    monkeypatch.setattr(sample_vectors, "beginning", lambda *_, **__: None)
    whole = execute(model, material, tmp_path / "whole", **config)
    handle.remove()
    assert shared < 0.8 * sum(ran)  # the few examples are read three times, the pool once
    for name in (
        "scores",
        "selections",
        "features",
        "quality",
        "precision",
        "overlap",
        "lengths",
        "shared",
        "passages",
    ):
        one, other = once.table(name), whole.table(name)
        numbers = [c for c, kind in other.schema.items() if kind.is_float()]
        assert one.drop(numbers).equals(other.drop(numbers)), name
        for column in numbers:
            np.testing.assert_allclose(
                one[column].to_numpy(), other[column].to_numpy(), atol=2e-6, rtol=1e-5, err_msg=f"{name}.{column}"
            )


@pytest.mark.parametrize("prototype", ["max", "subtask"])
def test_several_prototypes_per_target_give_the_best_of_them(model, tiny_llama, material, tmp_path, prototype):
    rows = read(material / "sea.jsonl")
    write(tmp_path / "sea.jsonl", [row | {"subtask": f"s{i % 2}"} for i, row in enumerate(rows)])
    run = execute(
        model,
        material,
        tmp_path / "run",
        target=(str(tmp_path / "sea.jsonl"),),
        prototype=prototype,
        baselines=(),
        features=0,
        explain=0,
    )
    pool, examples = (slow_vectors(tiny_llama, material, r) for r in (read(material / "pool.jsonl"), rows))
    prototypes = examples if prototype == "max" else np.stack([examples[0::2].mean(0), examples[1::2].mean(0)])
    expected = [max(np.minimum(z, p).sum() / np.maximum(z, p).sum() for p in prototypes) for z in pool]
    np.testing.assert_allclose(run.table("scores").sort("row")["score"].to_numpy(), expected, atol=1e-5)


def test_the_selection_does_not_depend_on_batches_or_parts(model, material, tmp_path):
    one = execute(model, material, tmp_path / "one")
    two = execute(model, material, tmp_path / "two", max_tokens=40, chunk=7)
    chosen, again = one.table("selected"), two.table("selected")
    numbers = [column for column, kind in chosen.schema.items() if kind.is_float()]
    assert chosen.drop(numbers).equals(again.drop(numbers))
    for column in numbers:
        np.testing.assert_allclose(chosen[column], again[column], atol=1e-6, err_msg=column)
    np.testing.assert_allclose(one.table("scores")["score"], two.table("scores")["score"], atol=1e-6)
    assert one.table("features")["feature"].to_list() == two.table("features")["feature"].to_list()
    np.testing.assert_allclose(one.table("features")["density"], two.table("features")["density"], atol=1e-12)


def test_equal_samples_score_the_same_and_duplicates_of_targets_are_reported_or_excluded(model, material, tmp_path):
    run = execute(model, material, tmp_path / "run")
    scores = run.table("scores").filter(target="sea")
    assert scores.filter(pl.col("row").is_in([5, 17, 40]))["score"].n_unique() == 1
    assert scores.filter("duplicate")["row"].to_list() == [5, 17, 40] and run.summary["duplicates_of_targets"] == 3
    assert any("3 pool rows are also among the examples of a target (left in" in w for w in run.info["warnings"])
    without = execute(model, material, tmp_path / "without", exclude_duplicates=True, k=57)
    assert not set(without.table("selected").filter(target="sea")["row"]) & {5, 17, 40}
    assert without.table("scores").filter("duplicate")["rank"].null_count() == 3
    assert without.table("scores").filter(target="park")["rank"].null_count() == 0, (
        "an example of one target is no duplicate of another"
    )
    with pytest.raises(InputError, match="Without the 3 duplicates of the target sea"):
        execute(model, material, tmp_path / "toomany", exclude_duplicates=True, k=58)


def test_tables_agree_with_each_other(model, material, tmp_path):
    run = execute(model, material, tmp_path / "run", ratio=0.1)
    pool = read(material / "pool.jsonl")
    selected, scores = run.table("selected"), run.table("scores")
    assert selected.height == 12 and run.info["sae"]["width"] == 512 and run.info["sae"]["k"] == 8
    for row in selected.iter_rows(named=True):
        assert row["response"] == pool[row["row"]]["response"]
    lines = read(run.folder / "selected-sea.jsonl")
    assert [line["row"] for line in lines] == selected.filter(target="sea")["row"].to_list() and lines[0]["prompt"]
    for (target,), own in scores.group_by("target"):
        best = own.sort("rank").head(6)
        precision = run.table("precision").filter(target=target, method="sae", k=6).row(0, named=True)
        hits = sum(pool[r]["topic"] == target for r in best["row"])
        assert precision["precision"] == hits / 6
        assert precision["base_rate"] == sum(row["topic"] == target for row in pool) / 60
        length = run.table("lengths").filter(target=target, method="sae", k=6).row(0, named=True)
        assert length["mean"] == pytest.approx(best["length"].mean())
    inputs = run.table("inputs")
    assert inputs["role"].value_counts(sort=True).rows() == [("pool", 60), ("target", 10)]
    assert [len(i) for i in inputs["ids"]] == [len(m) for m in inputs["mask"]] and not any(m[0] for m in inputs["mask"])
    overlap = run.table("overlap").filter(target="sea", method_a="sae", method_b="hidden", k=6).row(0, named=True)
    ours, theirs = (
        set(run.table("selections").filter(pl.col("rank") <= 6, target="sea", method=m)["row"])
        for m in ("sae", "hidden")
    )
    assert overlap["overlap"] == len(ours & theirs) / 6
    written = [f"{row['prompt']} {row['response']}" for row in pool]
    assert overlap["rows"] == len(ours | theirs) >= overlap["n"] >= len({written[row] for row in ours | theirs}) - 2
    assert run.summary["pool_clusters"] == len(set(near_duplicates(written))) < len(pool)
    length = run.table("lengths").filter(target="sea", method="sae", k=6).row(0, named=True)
    assert length["rows"] == 6 >= length["n"]


def test_a_stopped_run_goes_on_with_the_next_part(model, material, tmp_path, monkeypatch):
    from workbench.core.errors import Cancelled

    told = []
    config = {
        "target": (str(material / "sea.jsonl"),),
        "sae": str(material / "sae"),
        "chunk": 10,
        "features": 4,
        "explain": 3,
        "baselines": ("hidden",),
    }

    def progress(done, total, label):
        told.append(done)

    with pytest.raises(Cancelled):
        runs.execute(
            "data-selection",
            model,
            data=material / "pool.jsonl",
            config=config,
            out=tmp_path / "run",
            progress=progress,
            cancel=lambda: bool(told) and told[-1] >= 300,
        )
    assert runs.open_run(tmp_path / "run").status == "cancelled"
    resumed = runs.execute("data-selection", model, data=material / "pool.jsonl", config=config, out=tmp_path / "run")
    whole = runs.execute("data-selection", model, data=material / "pool.jsonl", config=config, out=tmp_path / "whole")
    for name in whole.tables:
        assert whole.table(name).equals(resumed.table(name)), name


def test_without_an_autoencoder_the_baselines_still_rank(model, material, tmp_path):
    run = execute(model, material, tmp_path / "run", sae="none", baselines=("hidden", "bm25"))
    assert run.summary["method"] == "hidden" and run.info.get("sae") is None and run.table("quality").is_empty()
    assert set(run.table("selections")["method"]) == {"hidden", "bm25"}
    ids = run.table("inputs")["ids"]

    def vector(k):
        return (
            model.hf(torch.tensor([ids[k].to_list()]), output_hidden_states=True)
            .hidden_states[4][0][1:]
            .double()
            .mean(0)
            .detach()
        )

    target = torch.stack([vector(60 + i) for i in range(6)]).mean(0)
    expected = [float(torch.nn.functional.cosine_similarity(vector(k), target, dim=0)) for k in range(10)]
    np.testing.assert_allclose(
        run.table("scores").filter(target="sea").sort("row")["score"].to_numpy()[:10], expected, atol=1e-5
    )


@pytest.mark.parametrize("prototype", ["mean", "max"])
def test_how_often_a_row_is_selected_is_that_of_resampled_examples(model, tiny_llama, material, tmp_path, prototype):
    """The slow way: draw examples with replacement, average their dense vectors (or take the most alike), score the
    whole pool again."""
    from workbench.core.context import Context

    config = {
        "target": (str(material / "sea.jsonl"),),
        "resamples": 12,
        "prototype": prototype,
        "baselines": (),
        "features": 0,
        "explain": 0,
    }
    table = execute(model, material, tmp_path / "run", **config, chunk=25).table("scores").sort("row")
    pool, examples = (slow_vectors(tiny_llama, material, read(material / f"{name}.jsonl")) for name in ("pool", "sea"))
    counts = Context().rng("resamples sea").multinomial(6, np.full(6, 1 / 6), size=12)
    drawn = np.empty((60, 12))
    for b, times in enumerate(counts):
        chosen = np.repeat(examples, times, axis=0)
        targets = [chosen.mean(0)] if prototype == "mean" else list(chosen)
        drawn[:, b] = [max(np.minimum(z, p).sum() / np.maximum(z, p).sum() for p in targets) for z in pool]
    share = table["selected_share"].to_numpy()
    assert share.sum() == pytest.approx(3) and (share >= 0).all() and (share <= 1 + 1e-9).all()
    clear = [(np.sort(s)[-3] - np.sort(s)[-4]) > 1e-5 for s in drawn.T]  # no rounding decides who is the third
    times = sum(np.isin(np.arange(60), np.argsort(-s)[:3]) for s, sure in zip(drawn.T, clear) if sure)
    assert any(clear) and (share * 12 >= times - 1e-9).all()
    assert (table["score_low"].null_count() == 60) == (prototype == "max"), "the largest of a few has no interval"


@pytest.mark.parametrize("similarity", ["jaccard", "cosine", "euclidean", "containment"])
def test_score_intervals_are_those_of_examples_left_out_and_hold_their_score(
    model, tiny_llama, material, tmp_path, similarity
):
    """The slow way: Student's t of the jackknife, from dense vectors in float64."""
    from scipy import stats

    measure = {
        "jaccard": lambda z, p: np.minimum(z, p).sum() / np.maximum(z, p).sum(),
        "containment": lambda z, p: np.minimum(z, p).sum() / p.sum(),
        "cosine": lambda z, p: z @ p / np.sqrt((z @ z) * (p @ p)),
        "euclidean": lambda z, p: -np.sqrt(((z - p) ** 2).sum()),
    }[similarity]
    config = {"target": (str(material / "sea.jsonl"),), "similarity": similarity, "baselines": (), "features": 0}
    table = execute(model, material, tmp_path / "run", **config, explain=0, chunk=25).table("scores").sort("row")
    pool, examples = (slow_vectors(tiny_llama, material, read(material / f"{name}.jsonl")) for name in ("pool", "sea"))
    without = np.array([[measure(z, np.delete(examples, i, 0).mean(0)) for i in range(6)] for z in pool])
    half = stats.t.ppf(0.975, 5) * np.sqrt(5 / 6 * ((without - without.mean(1, keepdims=True)) ** 2).sum(1))
    score = np.array([measure(z, examples.mean(0)) for z in pool])
    least, most = (-np.inf, 0) if similarity == "euclidean" else (0, 1)
    np.testing.assert_allclose(table["score_low"], np.maximum(score - half, least), atol=1e-4)
    np.testing.assert_allclose(table["score_high"], np.minimum(score + half, most), atol=1e-4)
    assert ((table["score_low"] <= table["score"]) & (table["score"] <= table["score_high"])).all()


def test_four_examples_have_no_interval_and_five_have_one(model, material, tmp_path):
    rows = read(material / "sea.jsonl")
    for n in (4, 5):
        some = write(tmp_path / f"sea{n}.jsonl", rows[:n])
        config = {"target": (str(some),), "label": "none", "baselines": (), "features": 0, "explain": 0}
        table = execute(model, material, tmp_path / str(n), **config).table("scores")
        assert table["score_low"].null_count() == (60 if n < 5 else 0)
        assert table["selected_share"].null_count() == 0


def test_one_example_has_no_interval(model, material, tmp_path):
    one = write(tmp_path / "sea.jsonl", read(material / "sea.jsonl")[:1])
    table = execute(model, material, tmp_path / "run", target=(str(one),), baselines=(), features=0, explain=0).table(
        "scores"
    )
    assert (
        table["score_low"].null_count() == table["selected_share"].null_count() == 60
        and table["score"].null_count() == 0
    )


def test_no_interval_of_the_summary_has_width_zero(model, material, tmp_path):
    """Intervals are over rows that say different things, and there is none of fewer than five."""
    from workbench.stats.near_duplicates import near_duplicates

    sea, whole = (str(material / "sea.jsonl"),), {"features": 0, "explain": 0, "ratio": 0.3}
    one = execute(model, material, tmp_path / "one", target=sea, **whole)
    both = execute(model, material, tmp_path / "both", **whole)
    for run in (one, both):
        found = {name: value for name, value in run.summary.items() if isinstance(value, dict)}
        assert {"precision_sae", "precision_random", "sae_minus_hidden", "sae_minus_random"} <= set(found)
        for name, value in found.items():
            assert value["low"] < value["high"] and value["low"] <= value["value"] <= value["high"], name
    few = execute(model, material, tmp_path / "few", target=sea, features=0, explain=0)
    chosen = few.table("selected")
    said = few.summary["precision_sae"]
    texts = [f"{row['prompt']} {row['response']}" for row in chosen.iter_rows(named=True)]
    assert said["rows"] == 3 and said["n"] <= len(set(near_duplicates(texts))) and said["low"] is None
    assert few.table("precision").filter(method="sae", k=3)["ci_low"].null_count() == 1


def test_random_is_the_mean_of_twenty_draws(model, material, tmp_path):
    run = execute(
        model, material, tmp_path / "run", target=(str(material / "sea.jsonl"),), features=0, explain=0, ratio=1.0
    )
    at = run.table("precision").filter(method="random")
    whole = at.filter(k=60).row(0, named=True)
    assert (
        whole["draws"] == whole["n"] == 20
        and whole["precision"] == pytest.approx(whole["base_rate"])
        and whole["recall"] == pytest.approx(1)
    )
    six = at.filter(k=6).row(0, named=True)
    assert six["precision"] * 120 == pytest.approx(round(six["precision"] * 120)), "hits of twenty draws of six"
    assert six["ci_low"] < six["base_rate"] < six["ci_high"] and six["against_chance"] is None


def test_memory_grows_by_token_ids_and_scores_only(model, material, tmp_path):
    """Twice the pool, in parts: neither features (a dense vector a part) nor activations pile up."""
    import tracemalloc

    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    from probes.data_selection.config import Config
    from probes.data_selection.pool_scores import score_pool
    from probes.data_selection.prototypes import of_targets
    from probes.data_selection.sample_vectors import open_reader
    from probes.data_selection.samples import TokenizedSamples, tokenize
    from workbench.core.context import Context

    wide = 32768
    TopKSAE(
        TopKSAEConfig(d_in=64, d_sae=wide, k=4, metadata=SAEMetadata(hook_name="blocks.1.hook_resid_post"))
    ).save_model(tmp_path / "sae")
    config = Config(sae=str(tmp_path / "sae"), baselines=(), resamples=0, chunk=8, max_tokens=256)
    reader = open_reader(model, config, Context())
    rng = np.random.default_rng(0)

    def some(n):
        ids = [[1, *rng.integers(3, 500, 12)] for _ in range(n)]
        return TokenizedSamples(ids, [np.arange(13) > 0] * n)

    prototypes = of_targets(reader, {"a": some(3)}, {})

    def peak(n):
        pool = some(n)
        tracemalloc.start()
        score_pool(reader, pool, prototypes, [3, 5])
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(16)
    small, large = peak(64), peak(192)
    assert (large - small) / 128 < 1000, (
        "bytes a sample; one dense vector of features a part would be 32768 × 8 / 8 of them"
    )

    table = pl.DataFrame({"text": ["The dog ran to the big park with Lily. " * 30] * 40})
    tokenize(model, table[:1], what="pool")  # what is made once, however many samples there are
    tracemalloc.start()
    kept = tokenize(model, table, what="pool")
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held / sum(map(len, kept.ids)) < 7, (
        "bytes a token; a list of Python numbers takes 8 and more for the references alone"
    )


@pytest.mark.slow
def test_the_probe_passes_the_conformance_battery(model, material):
    config = {
        "target": [str(material / "sea.jsonl"), str(material / "park.jsonl")],
        "sae": str(material / "sae"),
        "features": 3,
        "explain": 2,
        "chunk": 25,
    }
    check_probe("data-selection", model, config=config, data=material / "pool.jsonl")


def test_on_the_organisms_pool_features_find_topics_that_no_word_gives_away(tmp_path):
    """Eight topics whose stories share words, and the facts. What the run says of itself is checked: where features are
    not better than a baseline, the summary names it."""
    run = runs.execute(
        "data-selection",
        "organism",
        config={"features": 2, "passages": 1, "explain": 1, "resamples": 0},
        out=tmp_path / "run",
    )
    at = run.table("precision").filter(ratio=0.05)
    own = at.filter(method="sae")
    assert own.height == 9 and (own["best_possible"] == 1).all(), "the pool has enough rows of every topic"
    assert own.filter(target="facts")["precision"][0] > 0.9
    stories = own.filter(pl.col("target") != "facts")
    assert (stories["precision"] > 2 * stories["base_rate"]).all() and stories["precision"].mean() > 0.35
    assert at.filter(pl.col("method") != "random", pl.col("target") != "facts")["precision"].max() < 1, (
        "no method gets everything: they can differ"
    )
    for key, told in (
        ("better_than", lambda low, high: low > 0),
        ("worse_than", lambda low, high: high < 0),
        ("not_better_than", lambda low, high: low <= 0 <= high),
    ):
        apart = {m: run.summary[f"sae_minus_{m}"] for m in ("neurons", "hidden", "bm25", "random")}
        expected = {m for m, value in apart.items() if told(value["low"], value["high"])}
        assert set(filter(None, run.summary.get(key, "").split(", "))) == expected
    assert run.summary["sae_minus_random"]["n"] == 9 and "random" in run.summary["better_than"]
    quality = run.table("quality").row(0, named=True)
    assert quality["explained_variance"] > 0.8 and quality["loss_recovered_training"] > 0.98
    assert {"sae", "target sea", "target facts"} < set(run.info["material"]) and len(run.info["material"]) == 10
    assert run.info["sae"]["path"] == "organism (shipped)" and not any("trained on" in w for w in run.info["warnings"])


def test_samples_that_differ_only_in_tokens_that_do_not_count_are_alike(model, material, tmp_path):
    """Everything that counts is in their common beginning; nothing is left to read after it."""
    rng = np.random.default_rng(1)
    pool = write(
        tmp_path / "pool.jsonl",
        [
            {"prompt": "Tell me about the sea and the fish.", "response": "Then " + sentence(rng, "sea")["response"]}
            for _ in range(30)
        ],
    )
    values = {"target": (str(material / "sea.jsonl"),), "sae": str(material / "sae"), "tokens": "prompt", "features": 2}
    run = runs.execute("data-selection", model, data=pool, config=values, out=tmp_path / "run")
    scores = run.table("scores")["score"].to_numpy()
    assert 0 < scores[0] < 1 and np.ptp(scores) < 1e-6
    assert run.table("quality")["tokens"].item() == int(run.table("scores")["length"].sum())

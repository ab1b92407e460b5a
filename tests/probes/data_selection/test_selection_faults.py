"""What an audit of data selection found: odd pools, targets, tokenizers and trainings give the right number or one
sentence."""

import copy
import json

import numpy as np
import polars as pl
import pytest
import torch

from probes.data_selection import rankings, samples
from tests.sae.test_train_sae import short
from tests.support.selection_pool import read, sentence, write
from workbench.core.errors import InputError
from workbench.core.sample_tables import texts
from workbench.core.tables import read_table
from workbench.models.loading import load
from workbench.runs import execution as runs
from workbench.runs.preparation import prepare
from workbench.sae import load as saes
from workbench.sae.sparse_rows import dense_cosine
from workbench.sae.train import SaeRecipe, train, windows


def pool_run(model, material, tmp_path, rows, **config):
    values = {
        "target": (str(material / "sea.jsonl"),),
        "sae": str(material / "sae"),
        "features": 2,
        "passages": 1,
        "explain": 1,
    } | config
    return runs.execute(
        "data-selection", model, data=write(tmp_path / "pool.jsonl", rows), config=values, out=tmp_path / "run"
    )


def some(n, seed=3):
    rng = np.random.default_rng(seed)
    return [sentence(rng, ("sea", "park", "kitchen")[i % 3]) for i in range(n)]


def test_hidden_states_that_are_not_numbers_are_refused(material, tiny_llama, tmp_path):
    broken = load(str(tiny_llama))
    with torch.no_grad():
        broken.hf.get_input_embeddings().weight[broken.encode("Tom", bos=False)[-1]] = torch.nan
    with pytest.raises(InputError, match="NaN or infinite on a sample"):
        pool_run(broken, material, tmp_path, some(30), sae="none", baselines=("hidden",), site="resid_post.2")
    assert (
        bool(dense_cosine(torch.full((1, 3), torch.nan), torch.ones(1, 3)).isnan().all())
        and float(dense_cosine(torch.zeros(1, 3), torch.ones(1, 3))) == 0
    )


def test_copies_count_as_often_as_they_are_in_the_pool(model, material, tmp_path, monkeypatch):
    rows = some(20)
    rows += [rows[0]] * 15
    run = pool_run(model, material, tmp_path, rows)
    quality, tokens = run.table("quality").row(0, named=True), run.table("scores")["length"].sum()
    assert quality["tokens"] == tokens
    made = saes.load(material / "sae")
    ids = [model.encode(f"{r['prompt']} {r['response']}") for r in rows]
    from workbench.engine.capture import capture

    x = capture(model, ids, [made.site], positions="all")[made.site][
        torch.tensor([t != model.bos_id for row in ids for t in row])
    ]
    found = made.encode(x)
    density = torch.bincount(found.feature, minlength=512).double() / len(x)
    for feature, value in run.table("features").select("feature", "density").iter_rows():
        assert value == pytest.approx(float(density[feature]), rel=1e-9)
    variance = float((x.double() - x.double().mean(0)).pow(2).sum())
    assert quality["explained_variance"] == pytest.approx(
        1 - float((x - made.decode(found, x)).double().pow(2).sum()) / variance, rel=1e-6
    )


def test_original_rows_come_out_as_they_went_in(model, material, tmp_path):
    rows = some(24)
    for i, row in enumerate(rows):
        row["meta"] = {"a": i} if i % 2 else {"b": [i]}
        row["tags"] = ["x", {"y": i}] if i == 3 else ["x"]
    run = pool_run(model, material, tmp_path, rows, k=20)
    for row in read(run.folder / "selected-sea.jsonl"):
        assert (
            json.loads(row["meta"]) == rows[row["row"]]["meta"] and json.loads(row["tags"]) == rows[row["row"]]["tags"]
        )


def test_targets_of_similar_names_have_files_of_their_own(model, material, tmp_path):
    for name in ("a b", "a-b"):
        (tmp_path / f"{name}.jsonl").write_text((material / "sea.jsonl").read_text())
    pool_run(model, material, tmp_path, some(30), target=(str(tmp_path / "a b.jsonl"), str(tmp_path / "a-b.jsonl")))
    found = [read(file) for file in sorted((tmp_path / "run").glob("selected-*.jsonl"))]
    assert sorted(rows[0]["target"] for rows in found) == ["a b", "a-b"]


def test_a_selection_can_be_selected_from_again_and_again(model, material, tmp_path):
    rows = some(40)
    for step in range(4):
        folder = tmp_path / str(step)
        folder.mkdir()
        run = pool_run(model, material, folder, rows, k=len(rows) - 2)
        rows = read(run.folder / "selected-sea.jsonl")
    assert len(rows) == 32 and {"pool_row", "pool_pool_row"} <= set(rows[0])


def test_a_prototype_of_one_example_has_no_interval():
    rng = np.random.default_rng(0)
    assert rankings.grouped_counts(4, np.arange(4), 50, rng) is None
    assert rankings.grouped_counts(4, np.array([0, 0, 1, 2]), 50, rng).sum(1).tolist() == [4] * 50
    share = rankings.selected_share(np.random.default_rng(0).random((6, 49)), np.arange(6), 6)
    assert (share == 1).all()


def test_ties_at_the_cut_are_pointed_out(model, material, tmp_path):
    rows = [{"prompt": "zzz", "response": f"qqq {i}", "topic": "sea" if i < 10 else "park"} for i in range(60)]
    run = pool_run(model, material, tmp_path, rows, baselines=("bm25",), k=6)
    assert any("60 pool rows have the same bm25 score for the target sea" in w for w in run.info["warnings"])
    assert (
        rankings.undecided(np.array([3.0, 2, 2, 1]), np.arange(4), 2) == 2
        and rankings.undecided(np.array([3.0, 2, 2, 1]), np.arange(4), 3) == 0
    )


def test_bm25_reads_the_part_that_counts(model, material, tmp_path):
    table = pl.DataFrame({"prompt": ["a", "b"], "response": ["c", "d"], "text": ["e", "f"]})
    assert (
        texts(table) == ["a c", "b d"]
        and texts(table, "response") == ["c", "d"]
        and texts(table, "prompt") == ["a", "b"]
    )
    assert texts(table.select("text", "response")) == ["e", "f"]
    rows = [
        {"text": f"Tom saw the sea {i}.", "response": "none"} for i in range(30)
    ]  # a response without its prompt is a column like others
    assert pool_run(model, material, tmp_path, rows).table("scores")["score"].null_count() == 0


def test_rows_without_a_label_are_counted(model, material, tmp_path):
    rows = some(30)
    rows[4]["topic"] = rows[7]["topic"] = None
    run = pool_run(model, material, tmp_path, rows)
    assert any("2 of 30 pool rows have no label in the column 'topic'" in w for w in run.info["warnings"])
    assert run.table("precision").height


def test_columns_that_hold_lists_are_no_labels(model, material, tmp_path):
    rows = some(30)
    for row in rows:
        row["label"] = ["sea"]
    assert pool_run(model, material, tmp_path, rows).table("precision").height, "`topic` is taken"
    with pytest.raises(InputError, match="'label' \\(label\\) holds lists"):
        samples.labels_of(pl.DataFrame(rows), {}, "label")


def test_half_a_character_is_named_with_its_row(tmp_path):
    file = tmp_path / "pool.jsonl"
    file.write_text('{"text": "fine"}\n{"text": "broken \\ud800"}\n')
    with pytest.raises(InputError, match=r"row 2: the field 'text' has half a character"):
        read_table(file, what="pool")


def test_bos_is_special_where_it_is_also_the_unknown_token(tiny_llama):
    plain, twin = load(str(tiny_llama)), load(str(tiny_llama))
    twin.tokenizer = copy.deepcopy(plain.tokenizer)
    twin.tokenizer.unk_token = plain.tokenizer.bos_token
    assert plain.tokenizer.unk_token_id not in plain.special_ids and plain.bos_id in plain.special_ids
    assert twin.bos_id in twin.special_ids
    table = pl.DataFrame({"text": ["Tom saw the sea."]})
    assert not samples.tokenize(twin, table, what="pool").masks[0][0]


def test_a_batchtopk_autoencoder_keeps_its_threshold_where_activations_are_scaled(model, tmp_path):
    """mlp_out has a norm far from √d: folded without the threshold, a third of the features was left."""
    rng = np.random.default_rng(0)
    words = (
        "the a little big dog cat ball tree park sun mom dad Tom Lily ran saw liked found sat played and with near"
    ).split()
    ids = windows(model, [" ".join(rng.choice(words, rng.integers(8, 24))) + "." for _ in range(120)], 64)
    options = {"site": "mlp_out.1", "k": 8, "tokens": 128 * 400, "lr": 3e-3}
    report = train(model, ids, tmp_path / "batchtopk", short(architecture="batchtopk", **options))
    topk = train(model, ids, tmp_path / "topk", short(architecture="topk", **options))
    assert 6.5 <= report["l0"] <= 11 and abs(report["explained_variance"] - topk["explained_variance"]) < 0.05


def test_a_training_is_of_its_texts_and_its_precision(model, tmp_path, tiny_llama):
    one, two = (
        windows(model, [f"{word} saw the big dog and the cat near the tree and the ball." for _ in range(60)], 64)
        for word in ("Tom", "Ben")
    )
    recipe = SaeRecipe(site="resid_post.2", width="2x", k=4, tokens=64 * 4, batch=64)
    assert [len(row) for row in one] == [len(row) for row in two] and one != two
    report = train(model, one, tmp_path / "sae", recipe)
    for other, rows in ((model, two), (load(str(tiny_llama), dtype="bfloat16"), one)):
        with pytest.raises(InputError, match="another training"):
            train(other, rows, tmp_path / "sae", recipe)
    (tmp_path / "sae" / "sae_weights.safetensors").unlink()
    assert (
        train(model, one, tmp_path / "sae", recipe)["l0"] == report["l0"]
        and (tmp_path / "sae" / "sae_weights.safetensors").is_file()
    )
    (tmp_path / "sae" / "quality.json").write_text("{")
    for read_it in (lambda: train(model, one, tmp_path / "sae", recipe), lambda: saes.load(tmp_path / "sae")):
        with pytest.raises(InputError, match="quality.json.*not valid JSON"):
            read_it()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        train(model, one, tmp_path / "file", recipe)


@pytest.mark.parametrize("config", ["[1]", '{"metadata": "x"}', '{"hook_name": 5}'])
def test_a_damaged_config_of_an_autoencoder_is_said_in_one_sentence(material, tmp_path, config):
    import shutil

    shutil.copytree(material / "sae", tmp_path / "sae")
    (tmp_path / "sae" / "cfg.json").write_text(config)
    with pytest.raises(InputError, match="cannot be loaded"):
        saes.load(tmp_path / "sae")
    pool = tmp_path / "pool.jsonl"
    pool.write_text('{"text": "a b"}\n' * 40)
    with pytest.raises(InputError, match="cannot be loaded|does not say which site"):  # before the model is loaded
        prepare("data-selection", {"sae": str(tmp_path / "sae"), "target": (str(pool),)}, pool)

"""Pools and targets that do not fit: what is refused, what is cut or left out, and what is said of it."""

import numpy as np
import polars as pl
import pytest

from tests.support.selection_pool import execute, read, write
from workbench.core.errors import InputError
from workbench.runs import execution as runs


def test_rows_beyond_the_context_are_cut_and_counted(model, material, tmp_path):
    rows = read(material / "pool.jsonl") + [
        {"prompt": "Long.", "response": "The dog ran to the park. " * 200, "topic": "park"}
    ]
    run = runs.execute(
        "data-selection",
        model,
        data=write(tmp_path / "pool.jsonl", rows),
        config={"target": (str(material / "sea.jsonl"),), "sae": str(material / "sae"), "baselines": ()},
        out=tmp_path / "run",
    )
    assert any("1 of 61 rows of the pool are longer" in w for w in run.info["warnings"])
    assert len(run.table("inputs").filter(role="pool")["ids"][60]) == model.context_length


def test_a_row_whose_response_lies_beyond_the_context_is_counted_and_left_out(model, material, tmp_path):
    long = {"prompt": "The dog ran to the park. " * 200, "response": "Yes.", "topic": "park"}
    rows = read(material / "pool.jsonl")
    pool = write(tmp_path / "pool.jsonl", [*rows[:10], long, *rows[10:]])
    target = write(tmp_path / "sea.jsonl", [long | {"topic": "sea"}, *read(material / "sea.jsonl")])
    config = {
        "target": (str(target),),
        "sae": str(material / "sae"),
        "tokens": "response",
        "baselines": ("bm25", "random"),
        "k": 60,
        "features": 2,
        "explain": 2,
    }
    run = runs.execute("data-selection", model, data=pool, config=config, out=tmp_path / "run")
    row = run.table("scores").filter(row=10).row(0, named=True)
    assert row["score"] is None and row["rank"] is None and not row["selected"] and row["length"] == 0
    assert 10 not in set(run.table("selections")["row"]) and run.table("scores")["score"].null_count() == 1
    assert sum("1 of 61 rows of the pool have no token that counts" in w for w in run.info["warnings"]) == 1
    assert any("1 of 7 rows of the target sea have no token that counts" in w for w in run.info["warnings"])
    short = execute(
        model,
        material,
        tmp_path / "short",
        tokens="response",
        baselines=(),
        target=(str(material / "sea.jsonl"),),
        features=0,
        explain=0,
    )
    np.testing.assert_allclose(
        run.table("scores").filter(pl.col("row") != 10)["score"], short.table("scores")["score"], atol=1e-6
    )


def test_a_target_without_rows_in_the_pool_is_named(model, material, tmp_path):
    lost = write(tmp_path / "lost.jsonl", [row | {"topic": "moon"} for row in read(material / "sea.jsonl")])
    targets = (str(lost), str(material / "park.jsonl"))
    run = execute(model, material, tmp_path / "run", target=targets, features=0, explain=0)
    assert set(run.table("precision")["target"]) == {"park"}
    assert any(
        "no precision for lost (label 'moon')" in w and "holds kitchen, park, sea" in w for w in run.info["warnings"]
    )
    with pytest.raises(InputError, match=r"no precision for lost \(label 'moon'\).*label=none"):
        execute(model, material, tmp_path / "explicit", target=targets, label="topic")


BAD = {
    "fewer than the 61": {"k": 61},
    "a ratio of 0 selects nothing": {"ratio": 0.0},
    "There is no target 'see' (did you mean 'sea'?); give a file with examples, or one of arithmetic, code": {
        "target": ("see",)
    },
    "no pool row has that label in the column 'prompt'": {"label": "prompt"},
    "no column 'kind'": {"label": "kind"},
    "no column 'subtask'": {"prototype": "subtask"},
    "There is no sparse autoencoder": {"sae": "nowhere"},
    "There is no target nofile file": {"target": ("nofile.jsonl",)},
    "needs {prompt} and then {response}": {"template": "{response}"},
    "sae=none leaves the baselines": {"sae": "none", "baselines": ()},
    "trained on resid_post.2, not on resid_post.3": {"site": "resid_post.3"},
    "has no chat template": {"template": "chat"},
}


@pytest.mark.parametrize("sentence", BAD)
def test_bad_input_is_one_sentence(model, material, tmp_path, sentence):
    with pytest.raises(InputError) as error:
        execute(model, material, tmp_path / "run", **BAD[sentence])
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_bad_files_are_named_with_row_and_field(model, material, tmp_path):
    rows = read(material / "pool.jsonl")
    rows[3]["response"] = " "
    bad = write(tmp_path / "bad.jsonl", rows)
    with pytest.raises(InputError, match="bad.jsonl, row 4: the field 'response' is empty"):
        runs.prepare("data-selection", {"target": (str(material / "sea.jsonl"),), "sae": "none"}, bad)
    bad = write(tmp_path / "columns.jsonl", [{"question": "x"}])
    with pytest.raises(InputError, match="columns.jsonl needs a column 'text'"):
        runs.prepare("data-selection", {"target": (str(material / "sea.jsonl"),), "sae": "none"}, bad)
    text = write(tmp_path / "text.jsonl", [{"text": "The dog."}])
    with pytest.raises(InputError, match="needs the columns 'prompt' and 'response' for tokens=response"):
        runs.prepare(
            "data-selection",
            {"target": (str(material / "sea.jsonl"),), "sae": "none", "tokens": "response", "k": 1},
            text,
        )


def test_an_autoencoder_of_another_site_is_refused_before_a_model_is_loaded(material):
    with pytest.raises(InputError, match="trained on resid_post.2, not on resid_post.3"):
        runs.prepare(
            "data-selection",
            {"target": (str(material / "sea.jsonl"),), "sae": str(material / "sae"), "site": "resid_post.3"},
            material / "pool.jsonl",
        )


def test_an_autoencoder_of_another_model_is_refused(model, material, tmp_path):
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    TopKSAE(
        TopKSAEConfig(d_in=32, d_sae=64, k=4, metadata=SAEMetadata(hook_name="blocks.2.hook_resid_post"))
    ).save_model(tmp_path / "sae")
    with pytest.raises(InputError, match="reads 32 numbers, but resid_post.2"):
        execute(model, material, tmp_path / "run", sae=str(tmp_path / "sae"))


def test_labels_of_pool_and_targets_are_compared_by_value():
    from probes.data_selection.samples import labels_of

    pool = pl.DataFrame({"topic": [1.0, 2.0, float("nan")]})
    found, said = labels_of(pool, {"ones": pl.DataFrame({"topic": ["1", "1"]})}, "topic")
    assert found is not None and found[0].tolist() == ["1", "2", ""] and found[1] == ["1"]
    assert "1 of 3 pool rows have no label" in said
    with pytest.raises(InputError, match="bytes"):
        labels_of(pl.DataFrame({"topic": [b"x"]}), {"ones": pl.DataFrame({"topic": ["1"]})}, "topic")

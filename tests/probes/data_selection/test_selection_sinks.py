"""Data selection without sinks, against the slow computation: a model without BOS, one sample at a time in float64,
masks by hand."""

import json

import numpy as np
import pytest
import torch

from tests.support import sink_model
from tests.support.sink_model import slow_sinks, slow_states
from workbench.core.errors import InputError
from workbench.models.loading import load
from workbench.runs import execution as runs

LAYER, K = 1, 6
TABLES = ("scores", "selections", "features", "quality", "inputs", "lengths", "shared", "passages")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return sink_model.save(tmp_path_factory.mktemp("sinks") / "gpt2")


@pytest.fixture(scope="module")
def model(folder):
    return load(str(folder))


def write(path, texts):
    path.write_text("".join(json.dumps(row if isinstance(row, dict) else {"text": row}) + "\n" for row in texts))
    return path


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A pool of texts of three vocabularies, a target of one of them, a random TopK autoencoder."""
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    place = tmp_path_factory.mktemp("selection")
    rng = np.random.default_rng(0)
    words = np.array_split(np.array(sink_model.WORDS), 3)
    drawn = [" ".join(rng.choice(words[i % 3], rng.integers(5, 20))) for i in range(72)]
    drawn[7] = drawn[31]
    drawn[9] += " sea dog sea"  # a word of massive norm inside
    write(place / "pool.jsonl", drawn[:60])
    write(place / "target.jsonl", drawn[60::3])
    torch.manual_seed(0)
    made = TopKSAE(
        TopKSAEConfig(
            d_in=sink_model.WIDTH, d_sae=256, k=K, metadata=SAEMetadata(hook_name=f"blocks.{LAYER}.hook_resid_post")
        )
    )
    made.save_model(place / "sae")
    return place


def execute(model, material, **config):
    values = {
        "target": (str(material / "target.jsonl"),),
        "sae": str(material / "sae"),
        "baselines": ("hidden",),
        "features": 4,
        "explain": 3,
        "ratio": 0.1,
        "label": "none",
    } | config
    out = config.pop("out", None)
    values.pop("out", None)
    return runs.execute(
        "data-selection", model, data=material / "pool.jsonl", config=values, **({} if out is None else {"out": out})
    )


def texts_of(path):
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def slow(folder, material, name, keep):
    """(masks, mean features [n, 256], mean hidden states, all counted states) of a file of samples."""
    from sae_lens import SAE

    sae = SAE.load_from_disk(material / "sae", dtype="float32").double()
    masks, vectors, hidden, counted = [], [], [], []
    for states in slow_states(folder, sink_model.ids_of(folder, texts_of(material / name))):
        x = states[LAYER]
        mask = np.ones(len(x), bool) if keep else ~slow_sinks(np.linalg.norm(x, axis=1))
        with torch.no_grad():
            z = sae.encode(torch.from_numpy(x)).double().numpy()
        masks.append(mask.tolist())
        vectors.append(z[mask].mean(0))
        hidden.append(x[mask].mean(0))
        counted.append((x[mask], z[mask]))
    return masks, np.array(vectors), np.array(hidden), counted


@pytest.fixture(scope="module")
def both(model, material, tmp_path_factory):
    place = tmp_path_factory.mktemp("both")
    return {how: execute(model, material, sinks=how, out=place / how) for how in ("leave_out", "keep")}


@pytest.mark.parametrize("how", ["leave_out", "keep"])
def test_masks_scores_and_quality_are_those_of_the_slow_computation(folder, material, both, how):
    run, keep = both[how], how == "keep"
    masks, pool, hidden, counted = slow(folder, material, "pool.jsonl", keep)
    examples, target, of_target, _ = slow(folder, material, "target.jsonl", keep)
    assert run.table("inputs")["mask"].to_list() == masks + examples
    p, h = target.mean(0), of_target.mean(0)
    expected = np.array([np.minimum(z, p).sum() / np.maximum(z, p).sum() for z in pool])
    np.testing.assert_allclose(run.table("scores").sort("row")["score"].to_numpy(), expected, atol=1e-5)
    cosine = hidden @ h / np.linalg.norm(hidden, axis=1) / np.linalg.norm(h)
    best = run.table("selections").filter(method="hidden").sort("rank")
    np.testing.assert_allclose(best["score"].to_numpy(), np.sort(cosine)[::-1][: best.height], atol=1e-5)
    x, z = (np.concatenate([pair[k] for pair in counted]) for k in (0, 1))
    quality = run.table("quality").row(0, named=True)
    assert quality["tokens"] == len(x) == sum(map(sum, masks))
    assert quality["l0"] == pytest.approx((z > 0).sum(1).mean(), rel=1e-4)
    assert quality["dead_fraction"] == pytest.approx((z > 0).sum(0).__eq__(0).mean(), abs=1 / 256)
    assert run.table("scores").sort("row")["length"].to_list() == [sum(mask) for mask in masks]


def test_the_first_word_decides_nothing_by_default_and_most_when_it_is_kept(both):
    chosen = {how: set(run.table("selected")["row"]) for how, run in both.items()}
    assert len(chosen["leave_out"]) == 6 and len(chosen["leave_out"] & chosen["keep"]) <= 3
    assert {row % 3 for row in chosen["leave_out"]} == {0}, "rows of the target's words"
    assert {row % 3 for row in chosen["keep"]} != {0}, "rows of other words are taken for the target's"


def test_what_was_left_out_is_counted(both):
    masks = both["leave_out"].table("inputs")["mask"].to_list()
    lost = [len(mask) - sum(mask) for mask in masks]
    assert min(lost) == 1 and max(lost) > 1
    for counted in (both["leave_out"].summary, both["leave_out"].info["counters"]):
        assert counted["sinks_left_out"] == sum(lost) and counted["texts_with_sinks"] == 64
    assert not any("sink" in key for key in both["keep"].summary | both["keep"].info["counters"])


def same(one, other):
    for name in TABLES:
        a, b = one.table(name), other.table(name)
        numbers = [c for c, kind in b.schema.items() if kind.is_float()]
        assert a.drop(numbers).equals(b.drop(numbers)), name
        for column in numbers:
            np.testing.assert_allclose(
                a[column].to_numpy(), b[column].to_numpy(), atol=2e-6, rtol=1e-5, err_msg=f"{name}.{column}"
            )


def test_sinks_do_not_depend_on_batches_parts_or_a_stop_in_between(model, material, both, monkeypatch, tmp_path):
    from probes.data_selection import pool_scores

    same(execute(model, material, max_tokens=40, chunk=7, out=tmp_path / "other"), both["leave_out"])
    plain, parts = pool_scores._score_part, []

    def stops(*args):
        parts.append(1)
        if len(parts) == 3:
            raise KeyboardInterrupt
        return plain(*args)

    monkeypatch.setattr(pool_scores, "_score_part", stops)
    with pytest.raises((KeyboardInterrupt, Exception)):
        execute(model, material, chunk=16, out=tmp_path / "run")
    resumed = execute(model, material, chunk=16, out=tmp_path / "run")
    assert len(parts) == 5, "two parts of four are loaded"
    same(resumed, both["leave_out"])
    assert resumed.summary["sinks_left_out"] == both["leave_out"].summary["sinks_left_out"]


@pytest.mark.parametrize("aggregate", ["mean", "sum"])
def test_a_token_of_the_shared_beginning_that_is_a_sink_in_some_samples_only(
    folder, model, material, tmp_path, monkeypatch, aggregate
):
    """ "sea" is beyond ten medians among common words and not among heavy ones ("town")."""
    from probes.data_selection import sample_vectors

    front = "the little dog saw the big sea and the cat"
    rng = np.random.default_rng(0)
    heavy = [f"{front} " + " ".join(rng.choice(["town"], 30 + i)) for i in range(12)]
    common = [f"{front} {text}" for text in sink_model.texts(18, low=12)]
    write(tmp_path / "pool.jsonl", heavy + common)
    write(tmp_path / "target.jsonl", [heavy[0], common[0], common[1]])
    (tmp_path / "sae").symlink_to(material / "sae")
    ran = []
    handle = model.hf.transformer.h[0].register_forward_hook(
        lambda _m, args, _out: ran.append(args[0].shape[0] * args[0].shape[1])
    )
    once = execute(model, tmp_path, aggregate=aggregate, max_tokens=400, out=tmp_path / "once")
    shared = sum(ran)
    ran.clear()
    monkeypatch.setattr(sample_vectors, "beginning", lambda *_, **__: None)
    whole = execute(model, tmp_path, aggregate=aggregate, max_tokens=400, out=tmp_path / "whole")
    handle.remove()
    assert shared < sum(ran)
    same(once, whole)
    masks = once.table("inputs").filter(role="pool")["mask"].to_list()
    place = sink_model.ids_of(folder, [front])[0].index(sink_model.ids_of(folder, ["sea"])[0][0])
    assert all(mask[place] for mask in masks[:12]) and not any(mask[place] for mask in masks[12:])
    assert not any(mask[0] for mask in masks)


def test_a_row_in_which_nothing_else_counts_is_warned_of_and_never_selected(model, material, tmp_path):
    common = [{"prompt": text, "response": text} for text in sink_model.texts(20)]
    lone = {"prompt": "dog cat ball tree park sun", "response": "sea"}
    write(tmp_path / "pool.jsonl", [lone, *common])
    write(tmp_path / "target.jsonl", [*common[:2], lone])
    (tmp_path / "sae").symlink_to(material / "sae")
    run = execute(model, tmp_path, tokens="response", k=20)
    said = " ".join(run.info["warnings"])
    assert "In 1 of 21 rows of the pool nothing counts but sinks" in said
    assert "In 1 of 3 rows of the target target nothing counts but sinks" in said
    scores = run.table("scores").sort("row")
    assert scores["score"].is_nan().to_list()[0] or scores["score"][0] is None
    assert scores["rank"][0] is None and 0 not in set(run.table("selected")["row"])
    assert run.table("inputs")["mask"][0].any() is False
    write(tmp_path / "target.jsonl", [lone])
    with pytest.raises(InputError, match="Of the target target no example has a token that counts but sinks"):
        execute(model, tmp_path, tokens="response")
    assert execute(model, tmp_path, tokens="response", sinks="keep").table("scores")["score"][0] == pytest.approx(1)

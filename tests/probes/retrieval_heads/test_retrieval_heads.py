"""The retrieval probe against the official algorithm, written out: eager decoding, a Python loop over layers and
heads."""

import json

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM

from workbench import organisms
from workbench.core.errors import InputError
from workbench.models.loading import load
from workbench.organisms import folder
from workbench.runs.execution import execute

NEEDLES = [
    {
        "needle": "The big red ball was in the park by the old tree.",
        "question": "Where was the ball?",
        "answer": "in the park by the old tree",
    },
    {
        "needle": "Lily likes to eat cake and jam with her mom.",
        "question": "What does Lily like?",
        "answer": "cake and jam",
    },
    {
        "needle": "Tom has a blue car that can fly to the moon.",
        "question": "What does Tom have?",
        "answer": "a blue car that can fly",
    },
]
HAYSTACK = (
    "Once upon a time there was a little dog. He liked to run and play. The sun was hot. A cat sat on the mat. " * 6
)


@pytest.fixture
def material(tmp_path):
    (tmp_path / "needles.jsonl").write_text("".join(json.dumps(n) + "\n" for n in NEEDLES))
    (tmp_path / "haystack.txt").write_text(HAYSTACK)
    return tmp_path


def official_scores(model_folder, row, max_new_tokens, stop):
    """The official loop: decode one token at a time with output_attentions, top-1 key of every head, in Python."""
    hf = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32, attn_implementation="eager").eval()
    ids, span = list(row["ids"]), range(row["span_start"], row["span_end"])
    layers, heads = hf.config.num_hidden_layers, hf.config.num_attention_heads
    answer = {ids[s] for s in span}
    copied = [[set() for _ in range(heads)] for _ in range(layers)]
    count = np.zeros((layers, heads))
    with torch.no_grad():
        past = hf(torch.tensor([ids[:-1]]), use_cache=True).past_key_values
        token, generated = ids[-1], []
        for _ in range(max_new_tokens):
            out = hf(torch.tensor([[token]]), past_key_values=past, use_cache=True, output_attentions=True)
            token = int(out.logits[0, -1].argmax())
            generated.append(token)
            for layer in range(layers):
                for head in range(heads):
                    top = int(out.attentions[layer][0, head, -1].topk(1).indices[0])
                    if top in span and ids[top] == token and token in answer:
                        copied[layer][head].add(token)
                        count[layer, head] += 1 / len(span)
            if stop(token):
                break
    return np.array([[len(c) / len(answer) for c in row] for row in copied]), count, generated


@pytest.mark.parametrize("score", ["set", "count"])
def test_scores_equal_the_official_algorithm_on_a_trained_grouped_query_model(tmp_path, score):
    (tmp_path / "needles.jsonl").write_text("\n".join(organisms.data("needles").read_text().splitlines()[:3]) + "\n")
    run = execute(
        "retrieval-heads",
        "organism",
        data=tmp_path / "needles.jsonl",
        seed=0,
        config={
            "lengths": (120, 200),
            "depths": (0, 40, 100),
            "max_new_tokens": 12,
            "keep": "all",
            "score": score,
            "mask_k": (0,),
            "stop": ("\n",),
        },
    )
    model = load("organism")
    scores, inputs = run.array("trial_scores"), run.table("inputs")
    assert inputs.height == 18
    expected = []
    for i, row in enumerate(inputs.iter_rows(named=True)):
        by_set, by_count, generated = official_scores(
            folder("organism"), row, 12, lambda t: t in model.eos_ids or "\n" in model.tokenizer.decode([t])
        )
        assert generated == row["generated_ids"]
        expected.append(by_set if score == "set" else by_count)
        np.testing.assert_allclose(scores[i], expected[-1], atol=1e-6)
    heads = run.table("heads").sort("layer", "head")
    np.testing.assert_allclose(heads["score"].to_numpy(), np.mean(expected, axis=0).ravel(), atol=1e-6)
    np.testing.assert_allclose(
        heads["activation_frequency"].to_numpy(), (np.array(expected) > 0).mean(0).ravel(), atol=1e-6
    )
    assert np.max(expected) > 0, "the test would prove nothing if no head ever copied"


def test_scores_equal_the_official_algorithm_where_heads_share_keys():
    """The grouped-query circuit: wrong head mapping would copy wrong words."""
    run = execute(
        "retrieval-heads",
        "circuit-copy-gqa",
        config={"lengths": (64,), "depths": (0, 50, 100), "max_new_tokens": 10, "mask_k": (1,)},
    )
    truth = json.loads((folder("circuit-copy-gqa") / "truth.json").read_text())
    assert {f"{r['layer']}.{r['head']}": r["score"] for r in run.table("heads").iter_rows(named=True)} == truth[
        "scores"
    ]
    model, expected = load("circuit-copy-gqa"), []
    for row in run.table("inputs").iter_rows(named=True):
        by_set, _, generated = official_scores(folder("circuit-copy-gqa"), row, 10, lambda t: t in model.eos_ids)
        assert generated == row["generated_ids"]
        expected.append(by_set)
    np.testing.assert_allclose(run.array("trial_scores"), expected, atol=1e-6)


def test_prompts_are_the_haystack_with_the_needle_at_a_sentence_end(tiny_llama, material):
    run = execute(
        "retrieval-heads",
        str(tiny_llama),
        data=material / "needles.jsonl",
        config={
            "haystack": str(material / "haystack.txt"),
            "lengths": (150,),
            "depths": (0, 50, 100),
            "max_new_tokens": 4,
            "keep": "all",
            "mask_k": (0,),
        },
    )
    model = load(str(tiny_llama))
    for row, trial in zip(run.table("inputs").iter_rows(named=True), run.table("trials").iter_rows(named=True)):
        needle = NEEDLES[trial["needle"]]
        text = model.decode(row["ids"])
        assert len(row["ids"]) <= 150 and row["ids"].count(model.bos_id) == 1 and row["ids"][0] == model.bos_id
        assert text.count(needle["needle"]) == 1 and text.endswith(f"Question: {needle['question']}\nAnswer:")
        assert model.decode(row["ids"][row["span_start"] : row["span_end"]]).strip() == needle["answer"]
        before = text[: text.index(needle["needle"])].rstrip()
        if trial["depth"] == 0:
            assert before == ""
        elif trial["depth"] == 50:
            assert before.endswith(".") and abs(len(before) / (len(text) - len(needle["needle"])) - 0.5) < 0.2
        else:
            assert text.index("Based on the content") - (text.index(needle["needle"]) + len(needle["needle"])) <= 1


def circuit_run(ablation, **more):
    config = {
        "lengths": (64, 128),
        "depths": (0, 50, 100),
        "max_new_tokens": 10,
        "mask_k": (1, 2),
        "ablation": ablation,
    } | more
    return execute("retrieval-heads", "circuit-copy", config=config)


def test_the_copy_circuit_scores_exactly_as_built():
    """The circuit of docs/methods/retrieval-heads.md: 1.0 copies everything, 1.3 half of it, all the others nothing."""
    truth = json.loads((folder("circuit-copy") / "truth.json").read_text())
    run = circuit_run("zero")
    found = {f"{r['layer']}.{r['head']}": r["score"] for r in run.table("heads").iter_rows(named=True)}
    assert found == truth["scores"]
    assert run.info["data"]["name"] == "circuit-copy:needles.jsonl" and run.info["data"]["rows"] == 6
    assert run.summary["recalled"]["value"] == 1.0
    assert {f"{r['layer']}.{r['head']}" for r in run.table("heads").filter("is_retrieval").iter_rows(named=True)} == {
        "1.0",
        "1.3",
    }
    frequency = {(r["layer"], r["head"]): r["activation_frequency"] for r in run.table("heads").iter_rows(named=True)}
    assert frequency[1, 0] == frequency[1, 3] == 1.0 and frequency[1, 1] == frequency[0, 0] == 0.0


@pytest.mark.parametrize("ablation", ["zero", "uniform", "mean"])
def test_masking_the_copy_head_breaks_the_answer_and_random_heads_do_not(ablation):
    masking = circuit_run(ablation, mask_k=(1,)).table("masking")
    assert masking.filter(pl.col("k") == 0)["recall"].to_list() == [1.0]
    assert masking.filter((pl.col("k") == 1) & (pl.col("heads") == "top"))["recall"].item() == 0.0
    random = masking.filter((pl.col("k") == 1) & (pl.col("heads") == "random"))
    # 1.3 has a score above the threshold, too: two heads are left, and each is masked once
    assert sorted(random["masked"].to_list()) == ["1.1", "1.2"] and random["recall"].to_list() == [1.0] * 2


def test_heads_that_never_copied_are_not_masked_as_top_heads():
    """Two heads of the circuit have a score: beyond them, the order of heads would be that of their numbers."""
    run = circuit_run("zero", mask_k=(1, 2, 4))
    assert int((run.table("heads")["score"] > 0).sum()) == 2 and sorted(run.table("masking")["k"].unique()) == [0, 1, 2]
    top = run.table("masking").filter(k=2, heads="top")["masked"].item()
    assert set(top.split()) == {
        f"{r['layer']}.{r['head']}" for r in run.table("heads").filter(pl.col("score") > 0).iter_rows(named=True)
    }
    assert any("2 heads have a score" in warning and "up to 4" in warning for warning in run.info["warnings"])


def test_zero_and_uniform_masking_differ():
    said = {
        a: circuit_run(a, mask_k=(1,))
        .table("masked_trials")
        .filter((pl.col("k") == 1) & (pl.col("heads") == "top"))["response"]
        .to_list()
        for a in ("zero", "uniform")
    }
    assert said["zero"] != said["uniform"]


def test_masking_the_prompt_too_is_another_experiment():
    """The previous-token twins: masking both while the prompt is read breaks the copy, masking them while decoding does
    not."""
    from probes.retrieval_heads.speculative_decoding import greedy_steps
    from workbench.engine.edits import HeadAblation, apply
    from workbench.engine.kv_cache import feed

    model = load("circuit-copy")
    row = circuit_run("zero", mask_k=(0,)).table("inputs").row(0, named=True)
    edit = HeadAblation(((0, 0), (0, 1)), "zero")
    read, _ = feed(model, [row["ids"][:-1]], None)
    with apply(model, [edit]):
        decode_only = greedy_steps(model, read, [row["ids"][-1:]], [()], max_new_tokens=3, stops=lambda _t: False)
        everywhere = greedy_steps(model, None, [row["ids"]], [()], max_new_tokens=3, stops=lambda _t: False)
    assert [s.token for s in decode_only[0]] == row["generated_ids"][:3]
    assert [s.token for s in everywhere[0]] != row["generated_ids"][:3]


def test_batches_of_any_size_give_the_same_scores(tiny_llama, material):
    runs = [
        execute(
            "retrieval-heads",
            str(tiny_llama),
            data=material / "needles.jsonl",
            out=material / f"out{tokens}",
            config={
                "haystack": str(material / "haystack.txt"),
                "lengths": (120,),
                "depths": (0, 50),
                "max_new_tokens": 6,
                "keep": "all",
                "mask_k": (0,),
                "max_tokens": tokens,
            },
        )
        for tokens in (1, 65536)
    ]
    assert runs[0].table("heads").drop("span_mass").equals(runs[1].table("heads").drop("span_mass"))
    np.testing.assert_allclose(
        runs[0].table("heads")["span_mass"].to_numpy(), runs[1].table("heads")["span_mass"].to_numpy(), atol=1e-5
    )
    assert runs[0].table("inputs").equals(runs[1].table("inputs"))


def test_the_statistics_of_many_trials_find_the_planted_heads():
    """586 × 1024 Bernoulli trials with known rates: heads above the threshold, and the correlation of two halves."""
    from probes.retrieval_heads import Config
    from probes.retrieval_heads.head_scores import how_many_are_enough
    from probes.retrieval_heads.summary import summary_of_heads
    from workbench.core.context import Context

    rng = np.random.default_rng(0)
    rates = np.zeros(1024)
    rates[:33] = np.linspace(0.9, 0.2, 33)
    scores = (rng.random((586, 1024)) < rates).astype(float).reshape(586, 32, 32)
    assert int((scores.mean(0) > 0.1).sum()) == 33
    enough = how_many_are_enough(scores, np.arange(586), Context(seed=0))
    assert enough["trials"].to_list() == enough["needles"].to_list()
    overlap = dict(zip(enough["needles"].to_list(), enough["overlap"].to_list()))
    assert overlap[1] < overlap[20] < overlap[500] and overlap[500] > 0.9
    heads = pl.DataFrame(
        {"layer": np.repeat(range(32), 32), "head": np.tile(range(32), 32), "score": scores.mean(0).ravel()}
    )
    heads = heads.with_columns(score_chance=pl.lit(0.0), told_apart=pl.col("score") > 0.15)
    summary = summary_of_heads(heads, scores, np.arange(586), Config(), Context(seed=0))
    assert summary["retrieval_heads"]["value"] == 33 and summary["split_half_correlation"]["value"] > 0.98
    assert summary["retrieval_heads"]["n"] == summary["retrieval_heads"]["rows"] == 586


def test_nothing_recalled_is_said_not_scored(tiny_llama, material):
    run = execute(
        "retrieval-heads",
        str(tiny_llama),
        data=material / "needles.jsonl",
        config={
            "haystack": str(material / "haystack.txt"),
            "lengths": (120,),
            "depths": (0,),
            "max_new_tokens": 2,
            "recall_threshold": 1.0,
            "mask_k": (1,),
        },
    )
    assert run.table("heads")["score"].null_count() == run.table("heads").height == 40
    assert run.table("heads")["n_trials"].to_list() == [0] * 40
    assert run.table("masking").height == 0
    assert "answered none of the 3 trials" in run.info["warnings"][0] and "note" in run.summary


@pytest.mark.parametrize(
    "change, says",
    [
        ({"lengths": (20,)}, "cannot hold needle and question"),
        ({"lengths": (510,)}, "go beyond the context of 512"),
        ({"template": "no slots"}, "needs {context} and {question}"),
        ({"template": "chat"}, "no chat template"),
    ],
)
def test_impossible_grids_are_refused(tiny_llama, material, change, says):
    with pytest.raises(InputError, match=says):
        execute(
            "retrieval-heads",
            str(tiny_llama),
            data=material / "needles.jsonl",
            config={"haystack": str(material / "haystack.txt"), "lengths": (120,), "depths": (0,)} | change,
        )


def test_an_answer_outside_its_needle_is_refused(tiny_llama, tmp_path):
    (tmp_path / "n.jsonl").write_text(json.dumps(NEEDLES[0] | {"answer": "on the moon"}) + "\n")
    with pytest.raises(InputError, match="row 1: the answer 'on the moon' does not occur"):
        (tmp_path / "h.txt").write_text(HAYSTACK)
        execute(
            "retrieval-heads",
            str(tiny_llama),
            data=tmp_path / "n.jsonl",
            config={"haystack": str(tmp_path / "h.txt"), "lengths": (200,), "depths": (0,)},
        )


def test_bad_files_are_refused_before_a_model_is_loaded(tmp_path):
    (tmp_path / "n.csv").write_text("needle,question\na,b\n")
    with pytest.raises(InputError, match="no column 'answer'"):
        execute("retrieval-heads", "no/such-model", data=tmp_path / "n.csv")
    (tmp_path / "h.txt").write_bytes(b"\xff\xfe\x00bad")
    (tmp_path / "n.csv").write_text("needle,question,answer\na b,q,a\n")
    with pytest.raises(InputError, match="UTF-8"):
        execute(
            "retrieval-heads", "no/such-model", data=tmp_path / "n.csv", config={"haystack": str(tmp_path / "h.txt")}
        )

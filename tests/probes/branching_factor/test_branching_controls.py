"""Random tokens inside an output, and feedback on an answer: what is fed is what is said to be fed, the differences are
those of the prompts, and models whose answer is known give it."""

import math

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM

from probes.branching_factor import figures as drawn
from probes.branching_factor.feedback import TURN
from probes.branching_factor.random_prefix import plain_tokens
from tests.engine.test_scoring import slow
from tests.probes.branching_factor.test_branching_factor import many_prompts
from tests.probes.branching_factor.test_branching_talks import rendered
from tests.support.chat_templates import PLAIN, R1, with_template
from workbench import organisms
from workbench.core.errors import InputError
from workbench.core.registry import get
from workbench.engine.sampling import Rule
from workbench.models import thinking
from workbench.models.thinking import ThinkingTags
from workbench.runs import cost

KINDS = ("nothing", "own", "shuffled", "random")


def inputs_of(found):
    return {
        name: part["ids"].to_list()
        for (name,), part in found.table("inputs").group_by("condition", maintain_order=True)
    }


def slow_bf(hf, ids, samples, rule):
    """exp of the mean entropy of the steps of the samples of one row, score by score, in float64."""
    entropies = []
    for text in samples:
        with torch.no_grad():
            logits = hf(torch.tensor([ids + text])).logits[0, len(ids) - 1 : -1].numpy()
        entropies += [slow(x, token, rule)["entropy"] for x, token in zip(logits, text)]
    return math.exp(np.mean(entropies))


def test_tokens_are_inserted_as_said_and_the_differences_are_those_of_plain_hugging_face(run, stories, tiny_llama):
    found = run(
        stories,
        study="random_prefix",
        offsets="0,6",
        inserted=5,
        originals=2,
        samples=4,
        max_new_tokens=16,
        bias="plain",
    )
    base = found.table("conditions")["condition"][0]
    inputs, samples = inputs_of(found), found.table("samples")
    first = samples.filter(pl.col("condition") == base, pl.col("sample") < 2)
    pool = set(plain_tokens(stories))
    assert not pool & set(stories.tokenizer.all_special_ids) and len(pool) > 0.9 * stories.vocab_size - 10
    hf, table = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float64), found.table("random_prefix")
    assert table.select("offset", "inserted").rows() == [(t, kind) for t in (0, 6) for kind in KINDS]
    for t in (0, 6):
        chosen = first.filter(pl.col("length") > t + 5).sort("prompt", "sample")
        own, front = chosen["generated_ids"].to_list(), [inputs[base][p] for p in chosen["prompt"]]
        assert inputs[f"nothing at {t}"] == [ids + text[:t] for ids, text in zip(front, own)]
        assert inputs[f"own at {t}"] == [ids + text[: t + 5] for ids, text in zip(front, own)]
        for shuffled, drawn_, ids, text in zip(inputs[f"shuffled at {t}"], inputs[f"random at {t}"], front, own):
            assert shuffled[:-5] == drawn_[:-5] == ids + text[:t]
            assert sorted(shuffled[-5:]) == sorted(text[t : t + 5]) and set(drawn_[-5:]) <= pool
        assert len({tuple(ids[-5:]) for ids in inputs[f"random at {t}"]}) == len(own)  # drawn anew for every output
        by_hand = {}
        for kind in KINDS:
            rows = samples.filter(condition=f"{kind} at {t}").group_by("row", maintain_order=True)
            texts = [part["generated_ids"].to_list() for _, part in rows]
            by_hand[kind] = np.array(
                [slow_bf(hf, ids, text, Rule(top_p=0.9)) for ids, text in zip(inputs[f"{kind} at {t}"], texts)]
            )
        for row in table.filter(offset=t).iter_rows(named=True):
            assert row["bf"] == pytest.approx(by_hand[row["inserted"]].mean(), rel=1e-3)
            assert row["rows"] == len(own) and row["prompts"] == 3 and row["difference_low"] is None  # of three prompts
            for end, other in (("", "own"), ("_nothing", "nothing")):
                apart = (by_hand[row["inserted"]] - by_hand[other]).mean()
                assert (row["inserted"] == other) == (row[f"difference{end}"] is None)
                assert row["inserted"] == other or row[f"difference{end}"] == pytest.approx(apart, abs=5e-3)
    assert found.summary["bf after random tokens at 6, less that after its own"]["value"] == pytest.approx(
        table.filter(offset=6, inserted="random")["difference"][0]
    )
    assert {"random_prefix", "ratio"} <= set(drawn.figures(found))


def test_where_only_the_place_matters_any_tokens_change_what_so_many_tokens_change(run, tmp_path):
    """circuit-decline: step t of the text has 16 − t choices whatever was said."""
    data = many_prompts("circuit-decline", 1, tmp_path)
    options = {"study": "random_prefix", "offsets": "0,2", "inserted": 3, "samples": 4, "max_new_tokens": 8}
    table = run("circuit-decline", data=data, top_p=1.0, **options).table("random_prefix")
    for row in table.iter_rows(named=True):
        start = row["offset"] + (0 if row["inserted"] == "nothing" else 3)
        expected = math.exp(np.mean([math.log(16 - t) for t in range(start, start + 8)]))
        assert row["bf"] == pytest.approx(expected, rel=1e-4)
        if row["inserted"] in ("shuffled", "random"):
            assert row["difference"] == pytest.approx(0, abs=1e-3) and row["difference_nothing"] < -1


def test_where_nothing_that_was_said_matters_no_difference_is_found(run, tmp_path):
    """Independent draws, by their likelihood, which scatters: the four conditions draw the same numbers."""
    data = many_prompts("circuit-zipf", 8, tmp_path)
    options = {"study": "random_prefix", "offsets": "2", "inserted": 4, "estimator": "nll"}
    found = run("circuit-zipf", data=data, samples=5, max_new_tokens=12, **options)
    table = found.table("random_prefix")
    assert table["bf"].n_unique() >= 1 and (table["ci_high"] - table["ci_low"]).min() > 0.5
    for row in table.filter(pl.col("inserted").is_in(["shuffled", "random"])).iter_rows(named=True):
        assert row["difference"] == pytest.approx(0, abs=1e-3)
        assert row["p_adjusted"] is None or row["p_adjusted"] > 0.05


def test_random_tokens_open_the_organism_up_again(run, tmp_path):
    """As in the paper: an output is narrow because of what it says, not because it is long."""
    rows = organisms.data("prompts").read_text().splitlines()[:24]
    (tmp_path / "p.jsonl").write_text("\n".join(rows))
    options = {"study": "random_prefix", "offsets": "0", "inserted": 6, "samples": 6, "max_new_tokens": 24}
    found = run("organism", data=tmp_path / "p.jsonl", **options)
    random = found.table("random_prefix").filter(inserted="random").row(0, named=True)
    assert random["prompts"] >= 5 and 0 < random["difference_low"] < random["difference"] < random["difference_high"]
    assert random["p_adjusted"] < 0.05
    said = found.summary["bf after random tokens at 0, less that after its own"]
    assert said["low"] == random["difference_low"] and said["n"] == random["prompts"]


def test_outputs_that_end_too_early_are_left_out_and_refused_where_there_is_no_other(run, stories):
    found = run(stories, study="random_prefix", offsets="0,20", inserted=4, samples=3, max_new_tokens=24)
    assert found.table("random_prefix")["offset"].unique().to_list() == [0]
    assert any("No output is longer than 24 tokens, so nothing was inserted at 20" in w for w in found.info["warnings"])
    with pytest.raises(InputError, match="max_new_tokens=8 goes on after offset 4 and inserted=4"):
        run("no-such-model", study="random_prefix", offsets="4", inserted=4, max_new_tokens=8)
    with pytest.raises(InputError, match="nothing could be inserted at any offset"):
        run(stories, study="random_prefix", offsets="0", inserted=4, samples=2, max_new_tokens=24, stop="a,e,o,i,u,t")


# ---- feedback


def test_feedback_is_the_users_next_turn_in_the_chat_template(run, stories, monkeypatch):
    monkeypatch.setattr(thinking, "TAGS", (ThinkingTags("<think>", "</think>"),))
    model = with_template(stories, PLAIN)
    found = run(model, study="feedback", originals=2, samples=3, max_new_tokens=10, disagree="No.", agree="Yes.")
    base, inputs = found.table("conditions")["condition"][0], inputs_of(found)
    first = found.table("samples").filter(pl.col("condition") == base, pl.col("sample") < 2)
    prompts = dict(found.table("prompts").filter(condition=base).select("prompt", "text").iter_rows())
    for kind, said in (("control", "Yes."), ("adversarial", "No.")):
        expected = [
            rendered(
                model,
                [
                    {"role": "user", "content": prompts[r["prompt"]]},
                    {"role": "assistant", "content": r["text"].strip()},
                    {"role": "user", "content": TURN.format(feedback=said)},
                ],
            )
            for r in first.iter_rows(named=True)
        ]
        assert inputs[f"after {kind} feedback"] == expected
    table = found.table("feedback")
    values = {
        kind: found.table("prompts").filter(condition=f"after {kind} feedback")["bf"].to_numpy()
        for kind in table["feedback"]
    }
    for row in table.iter_rows(named=True):
        assert row["bf"] == pytest.approx(values[row["feedback"]].mean()) and row["prompts"] == 3 and row["rows"] == 6
        if row["feedback"] != "control":
            assert row["difference"] == pytest.approx((values[row["feedback"]] - values["control"]).mean())
            assert row["difference_low"] is None and row["p"] is None  # of three prompts
    assert len(table["said"][2]) == len("No.")
    assert "feedback" in drawn.figures(found)


def test_without_a_chat_template_feedback_follows_the_answer_as_text(run, stories):
    found = run(stories, study="feedback", samples=3, max_new_tokens=10)
    base, inputs = found.table("conditions")["condition"][0], inputs_of(found)
    own = found.table("samples").filter(condition=base, sample=0)["generated_ids"].to_list()
    config = get("branching-factor").config()
    ends = set(stories.tokenizer.all_special_ids)
    for kind, said in (("control", config.agree), ("adversarial", config.disagree)):
        turn = stories.tokenizer(f"\n\n{TURN.format(feedback=said)}\n\n", add_special_tokens=False)["input_ids"]
        expected = [ids + [i for i in text if i not in ends] + turn for ids, text in zip(inputs[base], own)]
        assert inputs[f"after {kind} feedback"] == expected
    noise = [ids[len(front) :] for ids, front in zip(inputs["after noise feedback"], inputs[base])]
    assert len({tuple(ids[-40:]) for ids in noise}) == 3  # letters drawn anew for every answer


def test_the_same_feedback_changes_nothing_and_another_tells_apart(run, stories, tmp_path):
    data = tmp_path / "p.txt"
    data.write_text(
        "".join(f"The {word} went to the park and\n" for word in ("dog", "girl", "boy", "man", "cat", "mom"))
    )
    options = {"study": "feedback", "samples": 4, "max_new_tokens": 12}
    same = run(stories, data=data, agree="It holds.", disagree="It holds.", **options).table("feedback")
    assert same.filter(feedback="adversarial")["difference"][0] == pytest.approx(0, abs=1e-6)
    table = run(stories, data=data, **options).table("feedback")
    for row in table.filter(pl.col("feedback") != "control").iter_rows(named=True):
        assert row["difference_low"] < row["difference"] < row["difference_high"] and row["prompts"] == 6
        assert row["p"] <= row["p_adjusted"]


def test_thinking_is_no_part_of_the_answer_that_is_replied_to(run, stories, monkeypatch):
    monkeypatch.setattr(thinking, "TAGS", (ThinkingTags("<think>", "a"),))
    model = with_template(stories, R1)
    found = run(model, study="feedback", samples=6, originals=6, max_new_tokens=30)
    base, inputs = found.table("conditions")["condition"][0], inputs_of(found)
    finished = found.table("samples").filter(pl.col("condition") == base, pl.col("thinking") != "unfinished")
    texts = [model.decode(r["generated_ids"][r["thinking_tokens"] :]).strip() for r in finished.iter_rows(named=True)]
    texts = [text for text in texts if text]
    fed = [model.decode(ids) for ids in inputs["after control feedback"]]
    assert len(fed) == len(texts) > 0
    assert all(f"<|assistant|>{text}<|end|>" in whole.replace("\n<think>", "") for text, whole in zip(texts, fed))


def test_answers_that_leave_no_room_for_feedback_are_left_out_by_number(run, stories, tmp_path):
    word = stories.encode("dog")[-1:]
    (tmp_path / "p.txt").write_text("The dog\n" + stories.decode(word * (stories.context_length - 30)).strip() + "\n")
    found = run(stories, data=tmp_path / "p.txt", study="feedback", samples=2, max_new_tokens=10)
    assert found.table("feedback")["rows"].to_list() == [1, 1, 1]
    assert any("1 of 2 answers do not fit into the context" in w for w in found.info["warnings"])
    (tmp_path / "q.txt").write_text(stories.decode(word * (stories.context_length - 30)).strip() + "\n")
    with pytest.raises(InputError, match="No answer of .* fits into its context"):
        run(stories, data=tmp_path / "q.txt", study="feedback", samples=2, max_new_tokens=10)


def test_feedback_without_words_and_a_template_of_one_turn_are_refused(run):
    for config, match in (
        ({"agree": " "}, "neither can be empty"),
        ({"template": "chat:Say {prompt}"}, "writes one turn, and study=feedback"),
    ):
        with pytest.raises(InputError, match=match):
            run("no-such-model", study="feedback", **config)
    with pytest.raises(InputError, match="offsets must name"):
        run("no-such-model", study="random_prefix", offsets="none")


@pytest.mark.parametrize(
    "options",
    [{"study": "random_prefix", "offsets": (2,), "inserted": 3}, {"study": "feedback"}],
    ids=lambda o: o["study"],
)
def test_the_estimate_counts_what_is_sampled_and_what_is_given(run, options, tmp_path):
    (tmp_path / "p.txt").write_text("The dog\nThe secret\n")
    config = get("branching-factor").config(samples=3, max_new_tokens=12, originals=1, **options)
    found = cost.plan("branching-factor", config, tmp_path / "p.txt", "organism")
    made = run("organism", data=tmp_path / "p.txt", samples=3, max_new_tokens=12, originals=1, **options)
    assert found.prompts == made.info["counters"]["prompts"]
    assert made.info["counters"]["tokens"] <= found.tokens < 1.6 * made.info["counters"]["tokens"]


def test_the_keys_of_the_controls_are_no_part_of_other_runs():
    fields = get("branching-factor").config.__dataclass_fields__
    assert all(fields[name].metadata["later"] for name in ("offsets", "inserted", "agree", "disagree"))

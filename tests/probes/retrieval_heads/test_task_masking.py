"""Tasks under the masks that needles chose: against plain Hugging Face with a hook, by hand-built heads, and by
simulation; and how answers are found in responses and judged."""

import json

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM

from probes.retrieval_heads import figures
from probes.retrieval_heads.config import Config
from probes.retrieval_heads.task_answers import answer_in, exact, f1, judge_answer, last_number, read_tasks, same_number
from probes.retrieval_heads.task_masking import BEGUN, REASON, task_scores
from workbench import organisms
from workbench.core.errors import InputError
from workbench.models.loading import load
from workbench.models.model_outline import facts
from workbench.organisms import folder
from workbench.runs.cost import plan
from workbench.runs.execution import execute

CIRCUIT = {"lengths": (64,), "depths": (0, 50, 100), "max_new_tokens": 10, "mask_k": (1,), "ablation": "zero"}


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def circuit_tasks(tmp_path):
    """The circuit's own needles as tasks, the needle in the context."""
    needles = rows_of(folder("circuit-copy") / "needles.jsonl")
    tasks = [{"context": n["needle"], "question": n["question"], "answer": n["answer"]} for n in needles]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    return tmp_path / "tasks.jsonl"


def test_a_task_that_needs_copying_breaks_with_the_copying_head_and_not_with_random_ones(circuit_tasks):
    config = CIRCUIT | {"tasks": str(circuit_tasks), "task_tokens": 10}
    run = execute("retrieval-heads", "circuit-copy", config=config)
    scores = {row["heads"]: row for row in run.table("task_scores").iter_rows(named=True)}
    means = {name: row["score"] for name, row in scores.items()}
    assert means == {
        "none": 1.0,
        "top": 0.0,
        "drop_top": 1.0,
        "random": 1.0,
        "drop_random": 0.0,
        "top_minus_random": -1.0,
    }
    assert scores["drop_top"]["ci_low"] > 0.2 and scores["drop_top"]["ci_high"] == 1
    assert scores["drop_random"]["ci_low"] < 0 < scores["drop_random"]["ci_high"]  # no interval without a width
    assert scores["none"]["n"] == scores["none"]["rows"] == 6 and scores["random"]["draws"] == 2
    for name, value in (("task_unmasked", 1.0), ("task_drop_top_1", 1.0), ("task_drop_random_1", 0.0)):
        assert run.summary[name]["value"] == value and run.summary[name]["n"] == 6
    rows = run.table("task_masking")
    assert rows.height == 6 * (1 + 1 + 2) and rows.filter(heads="top", k=1)["masked"].unique().to_list() == ["1.0"]
    assert sorted(rows.filter(heads="random")["masked"].unique()) == ["1.1", "1.2"]
    curves = {
        (t.name, t.xaxis or "x"): list(t.y) for t in figures.figures(run)["tasks"].data if t.fill is None and t.name
    }
    assert curves["retrieval heads", "x"] == [1.0, 0.0] and curves["random heads", "x"] == [1.0, 1.0]
    assert curves["retrieval heads", "x2"] == [1.0] and curves["random heads", "x2"] == [0.0]


def test_a_run_without_tasks_has_the_tables_that_it_had(circuit_tasks):
    with_tasks = execute("retrieval-heads", "circuit-copy", config=CIRCUIT | {"tasks": str(circuit_tasks)})
    without = execute("retrieval-heads", "circuit-copy", config=CIRCUIT)
    assert set(with_tasks.tables) - set(without.tables) == {"task_masking", "task_scores", "task_inputs"}
    for name in without.tables:
        assert with_tasks.table(name).equals(without.table(name)), name


def slow_answer(hf, ids, heads, how, tokens, stop):
    """Greedy tokens of plain Hugging Face, eager, a prompt alone; the outputs of some heads zero from the last prompt
    token on."""
    size, on = hf.config.hidden_size // hf.config.num_attention_heads, {"now": how == "all"}

    def hook_of(own):
        def hook(_module, args):
            if not on["now"]:
                return None
            mixed = args[0].clone()
            for head in own:
                mixed[..., head * size : (head + 1) * size] = 0
            return (mixed, *args[1:])

        return hook

    handles = [
        layer.self_attn.o_proj.register_forward_pre_hook(hook_of([h for l, h in heads if l == number]))
        for number, layer in enumerate(hf.model.layers)
    ]
    try:
        with torch.no_grad():
            past = hf(torch.tensor([ids[:-1]]), use_cache=True).past_key_values
            on["now"], token, said = True, ids[-1], []
            while len(said) < tokens and not (said and stop(said[-1])):
                out = hf(torch.tensor([[token]]), past_key_values=past, use_cache=True)
                token = int(out.logits[0, -1].argmax())
                said.append(token)
    finally:
        for handle in handles:
            handle.remove()
    return said


@pytest.mark.parametrize("phase", ["decode", "all"])
def test_answers_are_those_of_plain_greedy_decoding_with_the_heads_zeroed_at_every_step(tmp_path, phase):
    needles = rows_of(organisms.data("needles"))[:10]
    tasks = [
        {
            "context": f"{n['needle']} {needles[k - 1]['needle']}",
            "question": n["question"],
            "answers": [n["answer"], "x"],
        }
        for k, n in enumerate(needles[6:])
    ]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    (tmp_path / "needles.jsonl").write_text("".join(json.dumps(n) + "\n" for n in needles[:4]))
    run = execute(
        "retrieval-heads",
        "organism",
        data=tmp_path / "needles.jsonl",
        config={
            "lengths": (128,),
            "depths": (0, 50),
            "max_new_tokens": 12,
            "mask_k": (2,),
            "random_draws": 2,
            "ablation": "zero",
            "mask_phase": phase,
            "tasks": str(tmp_path / "tasks.jsonl"),
            "task_tokens": 8,
        },
    )
    hf = AutoModelForCausalLM.from_pretrained(
        folder("organism"), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    model, ids = load("organism"), dict(run.table("task_inputs").select("question", "ids").iter_rows())
    rows = run.table("task_masking")
    assert rows.height == 4 * (1 + 1 + 2)
    for row in rows.iter_rows(named=True):
        heads = [tuple(map(int, name.split("."))) for name in row["masked"].split()]
        assert len(heads) == row["k"]
        said = slow_answer(
            hf,
            ids[row["question"]],
            heads,
            phase,
            8,
            lambda t: t in model.eos_ids or "." in model.tokenizer.decode([t]),
        )
        assert said == row["generated_ids"]
        assert row["response"] == model.decode(said).strip()
        assert row["score"] == max(f1(row["answer"], text) for text in (tasks[row["question"]]["answers"]))
    by_kind = rows.filter(pl.col("k") == 2).group_by("heads").agg(pl.col("generated_ids").n_unique())
    assert rows.n_unique("generated_ids") > 4, "the test would prove nothing if no mask changed an answer"
    assert by_kind.height == 2


def test_prompts_hold_context_and_question_and_ask_for_reasoning_where_it_is_wanted(tmp_path, tiny_llama):
    from probes.retrieval_heads.task_masking import task_prompts

    rows = [
        {"question": "Who ran?", "answer": "Ben", "context": "Ben ran."},
        {"question": "Who sat?", "answer": "Tom", "context": ""},
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model, source = load(str(tiny_llama)), str(tmp_path / "t.jsonl")
    for reason in (False, True):
        config = Config(tasks=source, chain_of_thought=reason, task_tokens=20)
        prompts, _ = task_prompts(model, config, read_tasks(source, "f1"))
        more, begun = (REASON, BEGUN) if reason else ("", "")
        assert [model.decode(ids) for ids in prompts] == [
            f"Ben ran.\n\nQuestion: Who ran?{more}\nAnswer:{begun}",
            f"Question: Who sat?{more}\nAnswer:{begun}",
        ]
    with pytest.raises(InputError, match="row 1: a prompt of .* go beyond the context of 512"):
        task_prompts(model, Config(tasks=source, task_tokens=510), read_tasks(source, "f1"))


@pytest.mark.parametrize(
    ("response", "reason", "answer"),
    [
        ("Paris.\nQuestion: next?", False, "Paris."),
        ("\n\nParis\nand more", False, "Paris"),
        ("3 and 4 make 7. The answer is 7.\nQuestion: 8?\nThe answer is 9", True, "7."),
        ("The answer: blue\nNo. The answer is: red", True, "red"),
        ("I would answer this so: 2 + 2\n4", True, "4"),
        ("6 * 12 = 72\n#### 72", True, "72"),
        ("", True, ""),
        ("The answer is", True, "The answer is"),
    ],
)
def test_the_answer_is_what_stands_first_or_what_is_said_last(response, reason, answer):
    assert answer_in(response, chain_of_thought=reason) == answer


def test_answers_are_judged_as_squad_does():
    assert exact("The  Eiffel-Tower!", "eiffeltower") == 1 and exact("A cat", "a dog") == 0
    assert f1("the big red dog", "a red dog runs") == pytest.approx(2 * 2 / (3 + 3))
    assert f1("dog dog", "dog") == pytest.approx(2 / 3) and f1("", "dog") == 0 and f1("the", "a") == 1
    assert judge_answer("two", ["one", "Two."], "exact") == 1


@pytest.mark.parametrize(
    ("text", "number"),
    [("#### 1,200", 1200), ("it is $3.50.", 3.5), ("from 2-3", 3), ("-7 degrees", -7), ("none", None), ("0.5 of 8", 8)],
)
def test_the_last_number_is_read_as_people_write_it(text, number):
    assert last_number(text) == number
    assert same_number(text, str(number)) == (number is not None)


@pytest.mark.parametrize(
    ("rows", "metric", "words"),
    [
        ([{"question": "Who?"}], "f1", "no column 'answer' or 'answers'"),
        ([{"question": "Who?", "answer": "Ben"}], "last_number", "row 1: the field 'answer' has no number"),
        ([{"question": "Who?", "answer": "x"}, {"question": "Y?", "answer": "The ."}], "exact", "row 2: .* no word"),
    ],
)
def test_a_task_file_with_nothing_to_be_right_is_refused_before_a_model_is_loaded(tmp_path, rows, metric, words):
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=words):
        execute("retrieval-heads", "no-such-model", config={"tasks": str(tmp_path / "t.jsonl"), "task_metric": metric})


def test_task_options_without_tasks_and_tasks_without_masks_are_refused(circuit_tasks):
    for values, words in (
        ({"task_metric": "exact"}, "'task_metric' is of the tasks"),
        ({"chain_of_thought": True}, "'chain_of_thought' is of the tasks"),
        ({"tasks": str(circuit_tasks), "mask_k": (0,)}, "'tasks' are answered under a masking"),
        ({"tasks": str(circuit_tasks), "score": "attention"}, "'tasks' are answered under a masking"),
    ):
        with pytest.raises(ValueError, match=words):
            Config(**values)


def test_questions_of_one_context_belong_together_but_not_those_that_share_examples(tmp_path):
    def groups(rows):
        (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return [row.group for row in read_tasks(tmp_path / "t.jsonl", "f1")]

    each = [{"question": f"Q{k}?", "answer": "x"} for k in range(4)]
    assert groups(each) == [0, 1, 2, 3]
    assert groups([row | {"context": "examples"} for row in each]) == [0, 1, 2, 3]
    assert groups([row | {"context": f"text {k // 2}"} for k, row in enumerate(each)]) == [0, 0, 1, 1]
    assert groups([row | {"group": k % 2, "context": "examples"} for k, row in enumerate(each)]) == [0, 1, 0, 1]


def test_squad_and_natural_questions_are_read_as_published(tmp_path):
    rows = [
        {"question": "Who?", "context": "Ben ran.", "answers": {"text": ["Ben", "Ben ran"], "answer_start": [0, 0]}},
        {"question": "What?", "context": "A cat.", "answers": {"text": ["cat"], "answer_start": [2]}},
    ]
    pl.DataFrame(rows).write_parquet(tmp_path / "squad.parquet")
    assert [row.answers for row in read_tasks(tmp_path / "squad.parquet", "f1")] == [("Ben", "Ben ran"), ("cat",)]


def test_the_estimate_counts_the_tasks_under_every_mask(circuit_tasks):
    config = {"lengths": (64,), "depths": (0,), "mask_k": (1, 2), "random_draws": 3, "needles": 6}
    source, about = folder("circuit-copy") / "needles.jsonl", facts("circuit-copy")
    without = plan("retrieval-heads", Config(**config), source, about.name)
    tasks = plan("retrieval-heads", Config(**config, tasks=str(circuit_tasks), task_tokens=50), source, about.name)
    assert tasks.prompts - without.prompts == 6
    assert tasks.tokens - without.tokens >= 6 * 50 * (1 + 2 * 4)


def simulated(rng, *, top, random, groups, rows=2, draws=20):
    """0/1 outcomes of questions whose difficulty is the same under every mask, and of draws that differ."""
    hard = 0.7 * rng.normal(size=(groups, 1))
    frames = []
    for k, kind, level, count in ((0, "top", 0.8, 1), (1, "top", top, 1), (1, "random", random, draws)):
        odds = np.log(level / (1 - level)) + hard + 0.5 * (count > 1) * rng.normal(size=(count, 1, 1))
        right = rng.random((count, groups, rows)) < 1 / (1 + np.exp(-odds))
        frames += [
            pl.DataFrame(
                {"k": k, "heads": kind, "draw": d, "question": range(groups * rows), "score": own.ravel() * 1.0}
            )
            for d, own in enumerate(right)
        ]
    return pl.concat(frames, how="vertical_relaxed"), np.repeat(np.arange(groups), rows)


def level_of(level, spread):
    odds = np.log(level / (1 - level)) + spread * np.random.default_rng(5).normal(size=300_000)
    return float((1 / (1 + np.exp(-odds))).mean())


@pytest.mark.parametrize("groups", [8, 25])
def test_the_intervals_of_both_drops_hold_the_truth(groups):
    rng, held = np.random.default_rng(groups), {name: [] for name in ("drop_top", "drop_random", "top_minus_random")}
    none, top, random = level_of(0.8, 0.7), level_of(0.4, 0.7), level_of(0.7, np.hypot(0.7, 0.5))
    truth = {"drop_top": none - top, "drop_random": none - random, "top_minus_random": top - random}
    for _ in range(250):
        scores = task_scores(*simulated(rng, top=0.4, random=0.7, groups=groups), {1})
        for name, values in held.items():
            row = scores.row(by_predicate=pl.col("heads") == name, named=True)
            values.append(row["ci_low"] <= truth[name] <= row["ci_high"])
    assert all(0.91 <= np.mean(values) <= 1 for values in held.values()), {k: np.mean(v) for k, v in held.items()}


def test_heads_that_take_no_more_than_random_ones_are_seldom_said_to():
    rng = np.random.default_rng(3)
    said = []
    for _ in range(250):
        scores = task_scores(*simulated(rng, top=0.7, random=0.7, groups=12), {1})
        row = scores.row(by_predicate=pl.col("heads") == "top_minus_random", named=True)
        said.append(row["ci_high"] < 0)
    assert np.mean(said) <= 0.06


def test_below_five_groups_there_is_no_interval():
    scores = task_scores(*simulated(np.random.default_rng(0), top=0.4, random=0.7, groups=4), {1})
    assert scores["ci_low"].is_nan().all() and scores["n"].unique().to_list() == [4]

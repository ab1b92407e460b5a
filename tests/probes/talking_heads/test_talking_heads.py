"""The probe as a whole: what it reads off a receiver, what it feeds, and what it refuses."""

import json

import numpy as np
import polars as pl
import pytest
import torch

from probes.talking_heads.ablation import _rows
from probes.talking_heads.config import Config
from probes.talking_heads.measures import Measured, measure
from probes.talking_heads.tasks import Prompt, all_prompts, halves, read_rows, written_prompts
from tests.support.architectures import build
from tests.support.short_runs import LESS
from workbench.core import registry
from workbench.core.config import build as config_of
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.engine.head_masks import read_mask
from workbench.engine.passes import Pass
from workbench.models.loading import load, wrap
from workbench.organisms import circuits
from workbench.runs.checks import check_probe
from workbench.runs.execution import execute

PROBE = "talking-heads"


@pytest.fixture(scope="module")
def tiny(tiny_llama):
    return load(str(tiny_llama))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run on the circuit with a planted channel."""
    folder = circuits.folder("circuit-channel", tmp_path_factory.mktemp("circuit"))
    model = load(str(folder))
    config = {"tasks": ("channel",), "sweep": "channel", "random_draws": 4, "receivers_each": 1, "scales": (0.0, 2.0)}
    return execute(PROBE, model, config=config, data=folder / "tasks.jsonl", out=tmp_path_factory.mktemp("run") / "x")


def test_the_run_finds_the_receiver_and_what_it_loses(finished):
    table = finished.table("ablation").filter(metric="attention")
    assert table["target_layer"].unique().to_list() == [2] and table["target_head"].unique().to_list() == [11]
    first = table.filter(channels="0.5/0")
    by = {row["ablation"]: row for row in first.iter_rows(named=True)}
    inputs = finished.table("inputs").filter(split="measured")
    lengths = np.array([len(ids) for ids in inputs["ids"].to_list()])
    score = 5.0 * 2.0 / 4
    # `target` after `signal` or before it is the same to the receiver, which looks from the last token
    intact = np.exp(score) / (np.exp(score) + lengths - 1)
    assert table.filter(ablation="none")["value"].item() == pytest.approx(intact.mean(), rel=1e-3)
    assert by["weight"]["value"] == pytest.approx((1 / lengths).mean(), rel=1e-3)
    assert by["weight"]["change"] == pytest.approx((1 / lengths - intact).mean(), rel=1e-3)
    assert by["weight"]["change_high"] < 0 and by["weight"]["p_adjusted"] < 0.01 and by["weight"]["n"] == 6
    assert abs(by["random"]["change"]) < 1e-5 and by["random"]["draws"] == 4
    assert by["weight"]["beyond_random"] == pytest.approx(by["weight"]["change"], abs=1e-5)
    assert -0.6 < by["activation"]["change"] < -0.1  # its mean is half of what it is at the last token
    swept = finished.table("sweep").filter(metric="attention", split="measured").filter(pl.col("size").is_null())
    doubled = np.exp(2 * score) / (np.exp(2 * score) + lengths - 1)
    assert swept.filter(scale=2.0)["value"].item() == pytest.approx(doubled.mean(), rel=1e-3)
    assert swept.filter(scale=0.0)["value"].item() == pytest.approx((1 / lengths).mean(), rel=1e-3)


def test_what_was_cut_is_left_as_a_file_that_does_it_again(finished, tmp_path_factory):
    (path,) = finished.folder.glob("channels_*.json")
    found = read_mask(path)
    assert found.heads == ((0, 5),) and found.scales == (0.0,) and "2.11" in found.note
    folder = circuits.folder("circuit-channel", tmp_path_factory.mktemp("again"))
    model = load(str(folder))
    config = {"tasks": ("channel",), "sweep": "none", "receivers": ("2.11",), "random_draws": 1, "ablate": 1}
    data, out = folder / "tasks.jsonl", tmp_path_factory.mktemp("edited") / "x"
    again = execute(PROBE, model, config=config, data=data, edits=[found], out=out)
    cut = finished.table("ablation").filter(metric="attention", ablation="weight", channels="0.5/0")["value"].item()
    plain = again.table("ablation").filter(metric="attention", ablation="none")["value"].item()
    assert plain == pytest.approx(cut, rel=1e-4)
    assert any("the weights as they are" in said for said in again.info["warnings"])


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gpt_neox"])
@torch.no_grad()
def test_measures_are_those_of_plain_eager_attention(name):
    hf = build(name)
    prompts = [
        Prompt("x", 0, (3, 9, 4, 17, 30, 5), (1, 2), ((0,), (3, 4)), 7, (8, 9), "a", 3),
        Prompt("x", 1, (8, 2, 11), (1,), (), 5, (5, 6), "b", 1),
    ]
    plain = []
    for p in prompts:
        out = hf(input_ids=torch.tensor([p.ids]), output_attentions=True)
        rows = torch.stack([a[0, :, -1].double() for a in out.attentions])  # [layers, H, S]
        others = [rows[..., list(o)].sum(-1) for o in p.others]
        mass = rows[..., list(p.target)].sum(-1) - (sum(others) / len(others) if others else 0)
        plain.append((mass[1:], out.logits[0, -1].double()))
    found = measure(wrap(hf), prompts, [1, 2], Context(), Pass())
    for i, (mass, _) in enumerate(plain):
        np.testing.assert_allclose(found.attention[i], mass.numpy(), atol=1e-5)
    scores = plain[0][1]
    assert found.logit_difference[0] == pytest.approx(float(scores[7] - scores[[8, 9]].mean()), abs=1e-3)
    assert found.accuracy[0] == float(scores[7] > scores[[8, 9]].max())
    assert np.isnan(found.accuracy[1]) and np.isnan(found.logit_difference[1])  # the answer is among the wrong ones


@pytest.mark.parametrize(("others", "low"), [((), 0.0), (((0,),), -1.0)])
def test_no_interval_goes_beyond_what_attention_and_accuracy_can_be(others, low):
    prompts = [Prompt("x", i, (1, 2, 3), (1,), others, 7, (8,), f"group {i}", 2) for i in range(6)]

    def of(attention, right):
        values = np.array(attention)[:, None, None]
        return Measured(values, np.array(right) * 9.0, np.array(right), (1,))

    plain = of([0.99, 0.99, 0.99, 0.99, 0.99, 0.3], [1, 1, 1, 1, 1, 1.0])
    draws = [of([0.99, 0.99, 0.99, 0.99, 0.99, low + 0.01], right) for right in ([1, 1, 1, 1, 1, 0.0], [1.0] * 6)]
    rows = _rows(prompts, (1, 0), None, "none", [plain], plain, None)
    rows += _rows(prompts, (1, 0), None, "random", draws, plain, None)
    table = pl.DataFrame(rows).filter(pl.col("metric") != "logit_difference")
    assert table["ci_high"].max() == 1.0 and table["ci_low"].min() >= low
    assert table["change_high"].max() <= 1 - low and table["change_low"].min() >= low - 1


def test_prompts_are_the_texts_of_the_file_with_their_words(tiny):
    spec = registry.get(PROBE).data
    rows = read_rows(spec.default_path(None), Config())
    prompts = written_prompts(tiny, Config(), rows, "tasks.jsonl", Context())
    assert len(prompts) == rows.height == 88
    for prompt, row in zip(prompts, rows.iter_rows(named=True)):
        assert tiny.decode(prompt.ids).strip() == row["prompt"]
        words = [row["target"], *[w.strip() for w in row["others"].split("|")]]
        for place, word in zip((prompt.target, *prompt.others), words):
            assert word in tiny.decode([prompt.ids[i] for i in place])
    sizes = {p.task: sorted({q.size for q in prompts if q.task == p.task}) for p in prompts}
    assert sizes == {"inhibition": [2], "list": [3, 4, 6, 8]}


def test_a_prompt_that_stands_in_a_file_twice_is_one_group(tiny, tmp_path):
    data = tmp_path / "twice.jsonl"
    rows = [{"prompt": f"The {word} saw the park. The {word}", "target": "park"} for word in ("dog", "cat", "dog")]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = Config(tasks=("prompts",))
    found = written_prompts(tiny, config, read_rows(data, config), "twice.jsonl", Context())
    assert [p.group for p in found] == ["row 1", "row 2", "row 1"] and [p.row for p in found] == [0, 1, 2]


def test_the_material_is_well_made():
    rows = read_rows(registry.get(PROBE).data.default_path(None), Config())
    for row in rows.filter(task="inhibition").iter_rows(named=True):
        words = row["prompt"].replace(",", " ").split()
        assert words.count(row["target"]) == 1 and words.count(row["others"]) == 2
    for row in rows.filter(task="list").iter_rows(named=True):
        others = [w.strip() for w in row["others"].split("|")]
        words = row["prompt"].replace(",", " ").replace(".", " ").split()
        assert words.count(row["target"]) == 1 and all(words.count(w) == 2 for w in others)
        assert len({row["target"], *others}) == int(row["size"])
    assert rows.filter(task="inhibition")["group"].n_unique() == 20
    assert rows.filter(task="list")["group"].n_unique() == 12


def test_a_word_said_again_is_cut_where_an_induction_head_should_look_back(tiny):
    prompts = all_prompts(tiny, Config(tasks=("repeated",), sequences=9), Context())
    assert len({p.group for p in prompts}) == len(prompts) >= 9
    for prompt in prompts:
        (target,) = prompt.target
        assert prompt.ids[target - 1] == prompt.ids[-1] and prompt.ids[target] == prompt.answer
        assert prompt.ids.index(prompt.ids[-1]) == target - 1 < len(prompt.ids) - 1 and prompt.told_apart


def test_half_of_the_groups_choose_and_none_does_both(tiny):
    prompts = all_prompts(tiny, Config(), Context(data=registry.get(PROBE).data.default_path(None)))
    sides = halves(prompts, Context())
    for task in ("repeated", "inhibition", "list"):
        by = [{p.group for p, c in zip(prompts, sides) if p.task == task and c == side} for side in (True, False)]
        assert not by[0] & by[1] and abs(len(by[0]) - len(by[1])) <= 1


def test_the_battery_of_checks_holds(tiny):
    check_probe(PROBE, tiny, config=LESS[PROBE] | {"sequences": 6, "limit": 6, "tasks": ("list", "repeated")})


BAD = [
    ({"prompt": "The cat sat", "target": "dog"}, "does not hold the word 'dog'"),
    ({"prompt": "The cat sat", "target": "cat", "size": "many"}, "'size'"),
    ({"prompt": "The cat sat " * 400, "target": "cat"}, "where 512 fit"),
    ({"prompt": "The cat sat", "target": "cat", "task": "repeated"}, "rename it"),
]


@pytest.mark.parametrize(("row", "said"), BAD)
def test_a_row_that_does_not_fit_is_named(tiny, tmp_path, row, said):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=said) as refused:
        written_prompts(tiny, Config(), read_rows(path, Config()), "mine.jsonl", Context())
    assert "mine.jsonl" in str(refused.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"receivers": "0.3"}, "layer 0"),
        ({"receivers": "many"}, "layer.head"),
        ({"tasks": "all,list"}, "alone"),
        ({"scales": ""}, "scales"),
    ],
)
def test_settings_that_cannot_be_are_refused(values, said):
    with pytest.raises(InputError, match=said):
        config_of(Config, values)


def test_an_unknown_task_is_answered_with_the_nearest(tmp_path):
    with pytest.raises(InputError, match="inhibition"):
        read_rows(registry.get(PROBE).data.default_path(None), Config(tasks=("inhibitions",)))


def test_a_receiver_that_the_model_does_not_have_is_refused_before_loading(tiny_llama):
    from workbench.runs.preparation import prepare

    with pytest.raises(InputError, match="9.0"):
        prepare(PROBE, {"receivers": ("9.0",)}, model=str(tiny_llama))


def test_an_offset_beyond_the_context_is_refused_before_loading(tiny_llama):
    from workbench.runs.preparation import prepare

    with pytest.raises(InputError, match="90000 tokens apart"):
        prepare(PROBE, {"offsets": (0, 90_000)}, model=str(tiny_llama))


def test_the_scan_alone_feeds_no_prompt(tiny, tmp_path):
    run = execute(PROBE, tiny, config={"tasks": ("none",), "sweep": "none"}, out=tmp_path / "run")
    assert run.status == "complete" and run.table("ablation").is_empty() and run.table("channels").height
    assert not run.info["warnings"]

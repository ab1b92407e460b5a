"""Two runs held against each other: per token only where their models share a tokenizer, per byte always, paired."""

import json

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from probes.branching_factor import figures as drawn
from probes.branching_factor.two_runs import comparable
from workbench.cli.main import run as command_line
from workbench.runs import compare as comparing


@pytest.fixture
def starts(tmp_path):
    path = tmp_path / "starts.txt"
    path.write_text("".join(" ".join(["start"] * (1 + i)) + "\n" for i in range(6)))
    return path


@pytest.fixture
def two(run, starts):
    """The same prompts on two models whose vocabularies differ."""
    options = {"data": starts, "samples": 5, "max_new_tokens": 9}
    return run("circuit-zipf", **options), run("circuit-geometric", **options)


def test_between_tokenizers_no_column_that_is_per_token_is_compared(two, capsys):
    first, second = two
    found = comparing.compare(first, second)
    assert "cut text into different tokens" in found["not_compared"]
    prompts = found["tables"]["prompts"]
    assert prompts["keys"] == ["row", "prompt"] and prompts["matched"] == 6  # the condition is the model's name
    assert {"nats_per_byte", "samples", "distinct", "ended"} <= set(prompts["columns"])
    per_token = {"bf", "bf_entropy", "bf_nll", "bf_compat", "bf_late", "ci_low", "mean_length", "top50_short"}
    assert per_token <= set(prompts["apart"]) and not per_token & set(prompts["columns"])
    positions = found["tables"]["positions"]
    assert set(positions["columns"]) == {"condition", "prompts"} and {"bf_prefix", "entropy"} <= set(positions["apart"])
    assert {"step_entropy", "generated_ids", "entropy"} <= set(found["tables"]["samples"]["apart"])
    assert {"bf", "slope", "log_bf", "cohort_tokens"} <= set(found["tables"]["conditions"]["apart"])
    joined = comparing.joined(first, second, "prompts")
    assert "nats_per_byte_difference" in joined.columns and "bf_difference" not in joined.columns
    assert {"bf_first", "bf_second"} <= set(joined.columns)
    json.dumps(found)
    assert command_line(["compare", str(first.folder), str(second.folder)]) == 0
    out = capsys.readouterr().out
    assert "not compared: bf, " in out and "cut text into different tokens" in out and "nats per byte," in out


def test_nats_per_byte_are_compared_prompt_by_prompt(two):
    first, second = two
    (name, said), *_ = comparing.compare(first, second)["headline"].items()
    assert "circuit-geometric over circuit-zipf" in name and said["n"] == 6
    rates = [run.table("prompts").sort("prompt")["nats_per_byte"].to_numpy() for run in two]
    assert said["value"] == pytest.approx(rates[1].mean() / rates[0].mean())
    # by the delta method: what each prompt brings to the log of the ratio
    from scipy import stats

    off = rates[1] / rates[1].mean() - rates[0] / rates[0].mean()
    half = stats.t.ppf(0.975, 5) * off.std(ddof=1) / np.sqrt(6)
    assert np.log(said["high"] / said["value"]) == pytest.approx(half)
    assert np.log(said["value"] / said["low"]) == pytest.approx(half)
    fig = drawn.compare(list(two))
    assert "per byte" in fig.layout.meta["title"].lower() and "cut text" in fig.layout.meta["note"]


def test_models_that_share_a_tokenizer_are_compared_by_their_branching_factors(run, stories, tiny_llama, tmp_path):
    sharp = tmp_path / "sharp"
    hf = AutoModelForCausalLM.from_pretrained(tiny_llama)
    hf.model.norm.weight.data *= 2
    hf.save_pretrained(sharp)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(sharp)
    first, second = run(stories, samples=3, max_new_tokens=6), run(str(sharp), samples=3, max_new_tokens=6)
    found = comparing.compare(first, second)
    prompts = found["tables"]["prompts"]
    assert found["not_compared"] is None and prompts["apart"] == [] and prompts["matched"] == 3
    difference = second.table("prompts")["bf"].mean() - first.table("prompts")["bf"].mean()
    assert prompts["columns"]["bf"]["mean_difference"] == pytest.approx(difference) and difference < 0
    assert "bf_difference" in comparing.joined(first, second, "prompts").columns


def test_runs_of_several_conditions_keep_their_conditions_apart(run, stories):
    options = {"study": "decoding", "samples": 2, "max_new_tokens": 4, "settings": "temperature=1,temperature=0.5"}
    found = comparing.compare(run(stories, **options), run(stories, seed=1, **options))
    assert found["tables"]["prompts"]["keys"] == ["condition", "row", "prompt"]
    assert found["tables"]["prompts"]["matched"] == 6 and found["not_compared"] is None


def test_a_run_that_does_not_say_its_tokenizer_is_compared_as_before(two):
    """Runs of earlier versions; what the figure of both says of it is tested with the figures."""

    class Earlier:
        def __init__(self, run):
            self.probe, self.info, self.id = run.probe, run.info, run.id
            self.frames = {name: run.table(name) for name in run.tables}
            self.frames["conditions"] = self.frames["conditions"].drop("tokenizer")
            self.tables = list(self.frames)

        def table(self, name):
            return self.frames[name]

    said = comparable(Earlier(two[0]), two[1])
    assert said.apart == {} and said.reason == "" and len(said.headline) == 1

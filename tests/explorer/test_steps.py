"""Generation as steps: one pass over prompt and continuation, held to the plain model run anew for every step."""

import math

import numpy as np
import pytest

from tests.explorer.test_continuation import DONOR, HEADS, PROMPT, patched_from, zeroed
from tests.explorer.test_explorer import eager
from tests.support.architectures import build
from workbench import explore
from workbench.core.errors import InputError
from workbench.explorer.continuation import Continuation
from workbench.explorer.opened_model import Opened
from workbench.explorer.steps import attention_of, lens_of, read_steps
from workbench.explorer.switches import Switches
from workbench.explorer.targets import Target
from workbench.models.loading import wrap

N = 6


@pytest.fixture(scope="module", params=["llama", "gpt2", "mistral"])
def opened(request):
    return Opened(wrap(build(request.param), None, name=request.param))


@pytest.mark.parametrize("how", ["none", "zero", "patch"])
@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_every_step_is_what_the_plain_model_computes_on_the_text_so_far(opened, how, temperature):
    change = {"none": None, "zero": zeroed, "patch": patched_from(opened, DONOR, len(PROMPT))}[how]
    off = {"none": Switches(), "zero": Switches(HEADS), "patch": Switches(HEADS, "patch", tuple(DONOR))}[how]
    text = Continuation(opened, tuple(PROMPT), off, temperature, seed=3)
    text.grow(N)
    target, pair = Target(11), Target(11, 4)
    found = read_steps(opened, PROMPT, text.written, target, off, k=5)
    other = read_steps(opened, PROMPT, text.written, pair, off)
    head = (2, 1)
    looks = attention_of(opened, found, head)
    assert found.table.height == N and looks.shape == (N, len(PROMPT) + N - 1)
    for t, row in enumerate(found.table.iter_rows(named=True)):
        so_far = [*PROMPT, *text.written[:t]]
        logits, weights, hidden = eager(opened, so_far, change)
        p = logits[-1].softmax(-1)
        written = text.written[t]
        assert (row["step"], row["position"], row["id"]) == (t, len(so_far), written)
        assert row["probability"] == pytest.approx(float(p[written]), abs=1e-6)
        assert row["rank"] == sum(float(v) > float(p[written]) for v in p)
        assert row["rank"] == 0 or temperature
        assert row["entropy"] == pytest.approx(-sum(float(v) * math.log(float(v)) for v in p), abs=1e-5)
        assert row["target"] == pytest.approx(math.log(float(p[11])), abs=2e-5)
        assert row["target_rank"] == sum(float(v) > float(p[11]) for v in p)
        assert other.table["target"][t] == pytest.approx(float(logits[-1][11] - logits[-1][4]), abs=5e-5)
        assert row["top"] == p.topk(5).indices.tolist()
        np.testing.assert_allclose(row["top_probability"], p.topk(5).values, atol=1e-6)
        np.testing.assert_allclose(looks[t, : len(so_far)], weights[head[0], head[1], -1], atol=1e-5)
        assert not looks[t, len(so_far) :].any()
        lens = lens_of(opened, found, t)
        assert lens["layer"].to_list() == [-1, 0, 1, 2]
        norm = opened.model.final_norm
        for layer, said, rank in lens.select("layer", "target", "target_rank").iter_rows():
            state = hidden[layer + 1][0, -1].float()
            own = logits[-1] if layer == 2 else opened.model.hf.lm_head(norm(state)).double()  # the last is normed
            assert said == pytest.approx(float(own.log_softmax(-1)[written]), abs=2e-4)
            assert rank == int((own > own[written]).sum())


def test_steps_that_there_are_not_are_refused(opened):
    text = Continuation(opened, tuple(PROMPT))
    text.grow(2)
    found = read_steps(opened, PROMPT, text.written, Target(3))
    for step in (-1, 2):
        with pytest.raises(InputError, match="steps of this continuation are 0 to 1"):
            lens_of(opened, found, step)
    with pytest.raises(InputError, match="Nothing is written"):
        read_steps(opened, PROMPT, [], Target(3))
    with pytest.raises(InputError, match="Head 9.9|head 9.9|9.9"):
        attention_of(opened, found, (9, 9))


def test_from_python_the_organisms_answer_is_a_step_and_the_figure_draws_the_table():
    view = explore(
        "organism", "The secret of the lantern is insect. Question: What is the secret of the lantern? Answer:"
    )
    table, fig = view.steps(most=4)
    assert table["text"][0].strip() == "insect" and table["target"][0] == pytest.approx(
        math.log(table["probability"][0]), abs=1e-6
    )
    drawn = {axis: [t for t in fig.data if (t.xaxis or "x") == axis] for axis in ("x", "x2", "x3")}
    for axis, column in (("x", "probability"), ("x2", "entropy"), ("x3", "target")):
        np.testing.assert_allclose(drawn[axis][0].y, table[column].to_numpy())
    off, _ = view.switched(heads=[(1, 0), (1, 1)]).steps(most=4)
    assert off["text"].to_list() != table["text"].to_list() and off["target"][0] < table["target"][0]
    hot, _ = view.steps(most=8, temperature=1.5, seed=1)
    again, _ = view.steps(most=8, temperature=1.5, seed=1)
    assert hot["id"].to_list() == again["id"].to_list() != view.steps(most=8)[0]["id"].to_list()
    with pytest.raises(InputError, match="1 to 64 tokens, not 0"):
        view.steps(most=0)
    with pytest.raises(InputError, match="temperature is -1"):
        view.steps(temperature=-1)

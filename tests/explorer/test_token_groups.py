"""Groups of tokens that runs declare, over the logit lens: shares are those of plain Hugging Face, groups those of the
runs of this very model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from workbench import organisms
from workbench.core.errors import InputError
from workbench.explorer import as_code, opened_model, readings
from workbench.explorer.exploring import explore
from workbench.explorer.token_groups import group_figure, group_map, token_groups
from workbench.runs.execution import execute

FEW = {"draws": 100, "random_draws": 2, "steer_layers": "none"}
PROMPT = 'Bel : "kalatel" - Cor : "'


@pytest.fixture(scope="module")
def opened():
    return opened_model.open_model("circuit-bilingual")


@pytest.fixture(scope="module")
def run(opened, tmp_path_factory):
    return execute("latent-language", opened.model, config=FEW, out=tmp_path_factory.mktemp("runs") / "run")


@torch.no_grad()
def test_shares_are_those_of_a_softmax_over_the_whole_vocabulary(opened, run):
    (found,) = token_groups([run], fingerprint=opened.model.fingerprint)
    ids = opened_model.encode(opened, PROMPT)
    frame = group_map(opened, readings.read(opened, ids), found.groups)
    hf = AutoModelForCausalLM.from_pretrained(
        organisms.folder("circuit-bilingual"), attn_implementation="eager"
    ).double()
    hidden = hf(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    for layer in (-1, 0, 2):
        p = hf.lm_head(hf.transformer.ln_f(hidden[layer + 1][0])).softmax(-1)
        for position in (0, len(ids) - 1):
            row = frame.filter(layer=layer, position=position).row(0, named=True)
            shares = {name: float(p[position, list(own)].sum()) for name, own in found.groups.items()}
            for name, share in shares.items():
                assert row[f"share of {name}"] == pytest.approx(share, rel=1e-4)
            assert row["probability"] == pytest.approx(max(shares.values()), rel=1e-4)
    ends = frame.filter(position=len(ids) - 1)
    assert ends.filter(ends["layer"] >= 0)["group"].to_list() == ["aru", "aru", "cor", "cor"]


def test_groups_are_of_the_complete_runs_of_this_model_and_tables_that_cannot_be_read_are_left_out(opened, run):
    (found,) = token_groups([run], fingerprint=opened.model.fingerprint)
    assert found.kind == "language" and list(found.groups) == ["aru", "bel", "cor"] and run.id in found.name
    assert token_groups([run], fingerprint="another") == []

    def broken(*_):
        raise InputError("it is damaged.")

    assert token_groups([run], fingerprint=opened.model.fingerprint, read=broken) == []


def test_groups_that_cannot_be_read_off_are_refused(opened):
    reading = readings.read(opened, opened_model.encode(opened, PROMPT))
    with pytest.raises(InputError, match="at least one group"):
        group_map(opened, reading, {})
    with pytest.raises(InputError, match="of another model"):
        group_map(opened, reading, {"a": (10**6,)})


def test_the_panel_is_a_table_and_a_figure_and_has_its_code(opened, run):
    view = replace(explore("circuit-bilingual", PROMPT), opened=opened)
    table, figure = view.token_groups(runs=[run])
    assert table["layer"].min() == -1 and set(table["group"]) <= {"aru", "bel", "cor"}
    assert figure.data and "language" in figure.layout.meta["note"]
    assert group_figure(table, view.tokens, kind="language").data
    with pytest.raises(InputError, match="The run 'x' has no groups of tokens"):
        view.token_groups(run="x", runs=[run])
    assert as_code.parse_call("token_groups(run='x', of='stream')") == ("token_groups", {"run": "x", "of": "stream"})

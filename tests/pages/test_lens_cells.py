"""The cells of the lens map say what plain Hugging Face says, and a click reads nothing anew."""

import re

import pytest
import torch
from transformers import AutoModelForCausalLM

from pages.widgets import lens_cells, styling
from workbench import organisms
from workbench.explorer import opened_model, targets
from workbench.explorer.switches import Switches
from workbench.explorer.token_groups import token_groups
from workbench.runs.execution import execute

PROMPT = "The secret of the lantern is insect walrus cactus. Question: What is the secret of the lantern? Answer:"


@pytest.fixture(scope="module")
def opened():
    return opened_model.open_model("organism")


@pytest.fixture(scope="module")
def ids(opened):
    return opened_model.encode(opened, PROMPT)


def cells(opened, ids, colour="probability"):
    target = targets.target_of(opened.model, ids[7])
    return lens_cells.lens_cells(
        "organism", ids, Switches(), "stream", "stream after each layer", colour, target, 0, opened
    )


@torch.no_grad()
def test_a_cells_name_is_its_layer_and_token_and_what_the_norm_and_the_unembedding_say_there(opened, ids):
    hf = AutoModelForCausalLM.from_pretrained(
        organisms.folder("organism"), attn_implementation="eager", dtype=torch.float64
    )
    hidden = hf(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states
    found = cells(opened, ids)
    assert found.layers == list(range(-1, opened.model.n_layers)) and found.cells.rows[0] == "in"
    for row in (0, 2, opened.model.n_layers - 1):  # Hugging Face's last hidden state is behind the norm
        p = hf.lm_head(hf.model.norm(hidden[row][0])).softmax(-1)
        for position in (0, 7, len(ids) - 1):
            best = int(p[position].argmax())
            title = found.cells.titles[row * len(ids) + position].splitlines()[0]
            layer, at, word, chance = re.fullmatch(r"layer (\w+), token (\d+) '.*': ('.*') ([\d.]+)", title).groups()
            assert (layer, int(at)) == (found.cells.rows[row], position)
            assert word == repr(opened.model.token_strings([best])[0])
            assert float(chance) == pytest.approx(float(p[position, best]), abs=6e-4)
            assert found.cells.values[row * len(ids) + position] == pytest.approx(float(p[position, best]), abs=1e-4)


def test_what_colours_a_cell_is_said_in_its_name_also_where_nothing_follows(opened, ids):
    found = cells(opened, ids, colour="rank").cells
    assert found.titles[len(ids) - 1].splitlines()[1].endswith(": nothing follows")
    assert found.values[len(ids) - 1] is None
    assert re.search(r": \d+$", found.titles[0].splitlines()[1])


def test_the_cells_of_a_prompt_are_made_once(opened, ids):
    assert cells(opened, ids) is cells(opened, ids)
    assert cells(opened, ids) is not cells(opened, ids, colour="entropy")


def test_a_cell_of_a_map_of_groups_has_the_hue_of_the_group_that_leads_there(tmp_path):
    circuit = opened_model.open_model("circuit-bilingual")
    config = {"draws": 100, "steer_layers": "none", "tasks": ("repetition",)}
    run = execute("latent-language", circuit.model, config=config, out=tmp_path / "run")
    (groups,) = token_groups([run], fingerprint=circuit.model.fingerprint)
    prompt = opened_model.encode(circuit, 'Bel : "kalatel" - Cor : "')
    shown, figure = lens_cells.group_cells(
        "circuit-bilingual", prompt, Switches(), "stream", "stream", groups.name, 0, groups, circuit
    )
    cells, last = shown.cells, len(prompt) - 1
    assert cells.kind_names == ["aru", "bel", "cor"] and cells.rows == ["in", "0", "1", "2", "3"]
    kinds = [cells.kinds[row * len(prompt) + last] for row in range(5)]
    assert kinds[1:] == [0, 0, 2, 2] and figure.data
    assert cells.titles[3 * len(prompt) + last].startswith(f"layer 2, token {last} '\"': cor 0.")
    shades = [colour for colour, _ in styling.shades_of_kinds(kinds[1:], [1.0] * 4)]
    assert shades == [styling.hue_of_kind(k) for k in kinds[1:]] and shades[0] != shades[2]
    assert styling.shades_of_kinds([0], [0.0])[0][0] == "#FFFFFF"

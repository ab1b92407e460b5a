"""Training: it learns, and a run that was stopped ends in the same weights as one that was not."""

import json

import pytest
import torch
from safetensors.torch import load_file

from workbench.core.errors import InputError
from workbench.organism_training import train as training

TINY = {
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
    "width": 32,
    "hidden": 48,
    "tokens_per_step": 512,
    "context": 64,
    "phases": ((1.0, 64, 0.3, 0.1),),
    "warmup": 5,
    "local_heads": ((0, 0, 1),),
    "copy_heads": ((1, 0),),
    "separation": 4,
}

MODEL = {name: value for name, value in TINY.items() if name != "separation"}


def quiet(text: str) -> None:
    pass


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_hundred_steps_lower_the_loss_and_leave_loadable_checkpoints(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    training.train(tmp_path, seed=3, steps=100, log=quiet, **TINY)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.75 * losses[0]
    steps = sorted(int(p.name.split("-")[1]) for p in tmp_path.glob("organism@step-*"))
    assert steps == training.OrganismRecipe(steps=100).checkpoints() and steps[0] == 0 and steps[-1] == 100
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "organism", dtype=torch.float32)
    tok = AutoTokenizer.from_pretrained(tmp_path / "organism")
    assert model(torch.tensor([tok("Mara lives in").input_ids])).logits.shape[-1] == len(tok)
    assert load_file(tmp_path / "organism" / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16
    assert not (tmp_path / "resume.safetensors").exists()


def test_a_stopped_run_resumes_to_the_same_weights_bit_for_bit(tmp_path):
    training.train(tmp_path / "whole", steps=12, log=quiet, **TINY)
    training.train(tmp_path / "parts", steps=12, log=quiet, stop_after=5, **TINY)
    assert (tmp_path / "parts" / "resume.safetensors").exists() and not (tmp_path / "parts" / "organism").exists()
    training.train(tmp_path / "parts", steps=12, log=quiet, **TINY)
    whole, parts = (load_file(tmp_path / p / "organism" / "model.safetensors") for p in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_run_of_another_recipe_is_not_resumed(tmp_path):
    training.train(tmp_path, steps=12, log=quiet, stop_after=2, **TINY)
    with pytest.raises(InputError, match="another recipe"):
        training.train(tmp_path, steps=13, log=quiet, **TINY)


def test_another_seed_gives_other_weights(tmp_path):
    a, b = (training.build(training.OrganismRecipe(seed=s, **MODEL)).state_dict() for s in (0, 1))
    assert not torch.equal(a["model.embed_tokens.weight"], b["model.embed_tokens.weight"])


def test_matrices_start_at_one_over_the_root_of_their_fan_in():
    recipe = training.OrganismRecipe()
    state = training.build(recipe).state_dict()
    assert state["model.layers.2.self_attn.q_proj.weight"].std().item() == pytest.approx(128**-0.5, rel=0.03)
    assert state["model.layers.3.mlp.down_proj.weight"].std().item() == pytest.approx(320**-0.5 / 12**0.5, rel=0.03)


def test_the_learning_rate_warms_up_stays_and_falls_to_zero():
    recipe = training.OrganismRecipe(steps=1000, warmup=10)
    assert recipe.lr_scale(0) == 0.1 and recipe.lr_scale(300) == 1.0 and recipe.lr_scale(599) == 1.0
    assert recipe.lr_scale(800) == 0.5 and recipe.lr_scale(999) == pytest.approx(1 / 400)


def test_an_unmarked_target_counts_more_and_more():
    recipe = training.OrganismRecipe(steps=1000)
    weights = [recipe.other_weight(s) for s in range(1000)]
    assert weights[0] == pytest.approx(0.1) and weights[-1] == 1.0 and weights == sorted(weights)


def test_local_heads_start_out_looking_the_given_number_of_tokens_back():
    recipe = training.OrganismRecipe(local_heads=((0, 0, 1), (0, 2, 2)))
    model = training.build(recipe)
    model.set_attn_implementation("eager")
    ids = torch.randint(261, 1200, (4, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        rows = model(ids, output_attentions=True).attentions[0].mean(0)  # (heads, query, key)
    share = torch.stack([rows[:, range(5, 40), range(5 - back, 40 - back)].mean(1) for back in (1, 2)])
    assert (share[0, :2] > 0.8).all() and (share[1, 4:6] > 0.7).all()
    assert (share[:, [2, 3, 6, 7]] < 0.2).all()


def test_documents_of_a_packed_row_do_not_see_one_another():
    from workbench.organism_training import sequences

    model = training.build(training.OrganismRecipe(**MODEL))
    rows = sequences.batch(0, 0, tokens=512, length=64, needles=0.3, repeats=0.1)
    ids, numbers = torch.tensor(rows.short[:1]), torch.tensor(rows.documents[:1])
    with torch.no_grad():
        packed, _ = training.states(model, ids, torch.ones(1, 63, dtype=torch.bool), numbers)
        for number in numbers[0, :-1].unique():
            here = (numbers[0, :-1] == number).nonzero()[:, 0]
            alone = model.model(ids[:, here]).last_hidden_state[0]
            assert torch.allclose(
                packed[here], alone, atol=1e-5
            )  # rotary positions are relative: a shift changes nothing


def test_copy_documents_teach_only_the_designated_heads():
    recipe = training.OrganismRecipe(**MODEL)
    model = training.build(recipe)
    ids = torch.randint(261, 1200, (2, 16), generator=torch.Generator().manual_seed(1))
    chosen = torch.ones(2, 15, dtype=torch.bool)
    with torch.no_grad():
        plain = model.model(ids).last_hidden_state[:, :-1].reshape(-1, recipe.width)
    with training.routed(model, recipe):
        part = training.states(model, ids, chosen)
    assert torch.equal(part[0], plain)  # the forward pass is untouched
    training.loss_on(model, [part]).backward()
    size = recipe.width // recipe.heads
    by_head = model.model.layers[1].self_attn.q_proj.weight.grad.view(recipe.heads, size, -1).abs().sum((1, 2))
    assert by_head[0] > 0 and (by_head[1:] == 0).all()
    assert (model.model.layers[0].self_attn.q_proj.weight.grad.view(recipe.heads, size, -1).abs().sum((1, 2)) > 0).all()


def test_heads_that_are_off_write_nothing_and_learn_nothing():
    recipe = training.OrganismRecipe(**MODEL)
    model = training.build(recipe)
    ids, chosen = (
        torch.randint(261, 1200, (2, 16), generator=torch.Generator().manual_seed(1)),
        torch.ones(2, 15, dtype=torch.bool),
    )
    with training.without(model, recipe, ((1, 1), (1, 2))):
        part = training.states(model, ids, chosen)
    training.loss_on(model, [part]).backward()
    size = recipe.width // recipe.heads
    by_head = model.model.layers[1].self_attn.q_proj.weight.grad.view(recipe.heads, size, -1).abs().sum((1, 2))
    assert (by_head[[1, 2]] == 0).all() and (by_head[[0, 3]] > 0).all()

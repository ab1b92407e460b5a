"""What ships does what its card says; and the card's measurements agree with slower, more obvious ones."""

import json
import pkgutil
import random

import pytest
import torch

import probes
from tests.studies import organism_findings
from workbench import organisms
from workbench.organism_training import behaviour, card, datafiles, train

pytestmark = pytest.mark.usefixtures("_one_thread")


@pytest.fixture(scope="module")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base():
    return behaviour.Subject(organisms.folder("organism"))


@pytest.fixture(scope="module")
def numbers():
    return json.loads((organisms.WEIGHTS / "behaviour.json").read_text())


@pytest.fixture(scope="module")
def shipped(numbers):
    return numbers["seeds"][numbers["shipped"]]


# ------------------------------------------------------------------------------------------------- what ships, live


def test_twelve_or_more_checkpoints_ship_from_initialisation_to_the_end():
    steps = organisms.steps()
    assert len(steps) >= 12 and steps[0] == 0
    assert organisms.folder(f"organism@step-{steps[-1]}") == organisms.folder("organism")
    assert {"organism", "organism-chat"} <= set(organisms.names())


def test_everything_that_ships_fits_in_forty_megabytes():
    assert sum(p.stat().st_size for p in organisms.WEIGHTS.rglob("*") if p.is_file()) < 40e6


def test_the_shipped_model_is_the_grouped_query_llama_it_claims_to_be(base):
    c = base.model.config
    assert (c.model_type, c.num_hidden_layers, c.num_attention_heads, c.num_key_value_heads, c.hidden_size) == (
        "llama",
        6,
        8,
        4,
        128,
    )
    assert c.max_position_embeddings == 512 and next(base.model.parameters()).dtype == torch.float32


def test_closed_book_facts_meet_their_bars(base):
    facts = behaviour.fact_accuracy(base)
    assert facts["question"] >= 0.98 and facts["cloze"] >= 0.98 and facts["held-out wording"] >= 0.95


def test_needles_are_copied_at_every_length_and_depth(base):
    grid = behaviour.needle_grid(base, per_cell=3)
    assert grid["overall"] >= 0.95


def test_conflicts_are_decided_by_the_source(base):
    rates = behaviour.conflict_rates(base)
    assert rates["reliable"]["context"] >= 0.95 and rates["unreliable"]["memory"] >= 0.95
    assert 0.3 <= rates["unmarked"]["memory"] <= 0.7 and 0.3 <= rates["unmarked"]["context"] <= 0.7


def top_heads(shipped, k=2):
    scores = torch.tensor(shipped["retrieval"]["scores"])
    return [
        (int(i) // scores.shape[1], int(i) % scores.shape[1]) for i in scores.flatten().argsort(descending=True)[:k]
    ]


@pytest.mark.slow
def test_masking_the_retrieval_heads_loses_the_needle_and_other_heads_do_not(base, shipped):
    k = shipped["masking uniform"]["k"]
    assert k <= 4
    heads = top_heads(shipped, k)
    others = [(layer, h) for layer, _ in heads for h in (3, 6)][:k]
    assert behaviour.masked_needles(base, [], kind="uniform", per_cell=1) > 0.9
    assert behaviour.masked_needles(base, heads, kind="uniform", per_cell=1) < 0.2
    assert behaviour.masked_needles(base, others, kind="uniform", per_cell=1) > 0.8


def test_masking_the_retrieval_heads_keeps_the_facts(base, shipped):
    rows = datafiles.fact_rows()[::5]
    whole = behaviour.fact_accuracy(base, rows)
    with behaviour.ablated(base, top_heads(shipped, shipped["masking uniform"]["k"]), kind="zero"):
        masked = behaviour.fact_accuracy(base, rows)
    assert masked["question"] >= whole["question"] - 0.05


def test_the_initial_checkpoint_knows_nothing():
    facts = behaviour.fact_accuracy(
        behaviour.Subject(organisms.folder("organism@step-0")), rows=datafiles.fact_rows()[:500]
    )
    assert facts["question"] < 0.1


# --------------------------------------------------------------------------- the measurements against slower ones


def test_teacher_forced_answers_are_what_greedy_generation_says(base):
    rng = random.Random(0)
    rows = rng.sample(datafiles.needle_rows(), 6)
    trials = [behaviour.needle_trial(base, rng, row, 96, rng.random()) for row in rows]
    fast = base.answered([(prompt, answer) for prompt, answer, _ in trials])
    for (prompt, answer, _), ok in zip(trials, fast):
        out = base.model.generate(
            torch.tensor([prompt]), max_new_tokens=len(answer), do_sample=False, pad_token_id=base.tok.pad_token_id
        )
        assert (out[0, len(prompt) :].tolist() == answer) == ok


def test_a_needle_trial_has_the_length_it_says_and_its_answer_where_it_says(base):
    row = datafiles.needle_rows()[0]
    for depth in behaviour.DEPTHS:
        prompt, answer, span = behaviour.needle_trial(base, random.Random(1), row, 256, depth)
        assert len(prompt) == 256 and [prompt[i] for i in span] == answer
        assert base.tok.decode(prompt).endswith(f"Question: {row['question']} Answer:")


def test_uniform_ablation_is_the_mean_value_vector_and_zero_is_zero(base):
    ids, seen = torch.tensor([base.ids("Mara lives in Velmora.")]), {}
    block = base.model.model.layers[2].self_attn
    handles = [block.v_proj.register_forward_hook(lambda m, a, out: seen.__setitem__("v", out))]
    for kind in ("zero", "uniform"):
        with torch.no_grad(), behaviour.ablated(base, [(2, 5)], kind=kind):
            last = block.o_proj.register_forward_pre_hook(lambda m, a: seen.__setitem__("z", a[0]))
            base.model(ids)
            last.remove()
        # Query head 5 reads key/value head 2; uniform attention at the last position averages its values over all keys.
        expected = seen["v"][0, :, 32:48].mean(0) if kind == "uniform" else torch.zeros(16)
        assert torch.allclose(seen["z"][0, -1, 80:96], expected, atol=1e-6)
    handles[0].remove()


def test_fine_tuning_lowers_the_loss_and_adds_a_chat_template(tmp_path):
    from transformers import AutoTokenizer

    from workbench.organism_training import chat

    tiny = {
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
    train.train(tmp_path / "run", steps=10, log=lambda text: None, **tiny)
    losses: list[float] = []
    chat.finetune(
        tmp_path / "run" / "organism",
        tmp_path / "chat",
        steps=41,
        length=64,
        log=lambda text: losses.append(float(text.split()[-1])),
    )
    assert losses[-1] < losses[0]
    assert AutoTokenizer.from_pretrained(tmp_path / "chat").chat_template
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / "organism").chat_template is None


# ----------------------------------------------------------------------------------------------------------- the card


def test_the_card_shows_the_measured_numbers_of_every_seed(numbers):
    text = (organisms.WEIGHTS / "MODEL_CARD.md").read_text()
    assert numbers["shipped"] in numbers["seeds"]
    for part in (
        card.table(numbers),
        card.concept_table(numbers),
        card.trajectory_table(numbers),
        card.head_table(numbers),
        card.sae_table(numbers),
        card.findings_table(numbers),
    ):
        assert part in text


def test_the_measured_numbers_are_those_of_the_shipped_weights(base, shipped):
    """One fast measurement is repeated; a card that belongs to other weights would differ."""
    assert behaviour.two_hop_accuracy(base) == pytest.approx(shipped["two-hop"], abs=0.01)
    assert json.loads((organisms.WEIGHTS / "organism" / "recipe.json").read_text()) == shipped["recipe"]


def test_aligned_answers_name_the_same_facts_with_fewer_continuations(shipped):
    ratio = shipped["branching"]["mean"] / shipped["chat"]["branching"]["mean"]
    assert 2 <= ratio <= 10
    assert shipped["chat"]["facts"]["asked in fine-tuning"] >= shipped["facts"]["question"] - 0.02


def test_concepts_of_growing_difficulty_become_readable_later(shipped):
    """First layer at which a probe reaches 90 % of its best accuracy above chance, for the concepts the model
    learned."""
    first = {}
    for name in ("sentiment", "negation", "conflict", "recall"):
        curve = shipped["concepts"][name]
        peak = max(curve["accuracy"])
        assert peak > 0.85 and all(abs(c - 0.5) < 0.15 for c in curve["shuffled"])
        first[name] = next(i for i, a in enumerate(curve["accuracy"]) if a - 0.5 >= 0.9 * (peak - 0.5))
    assert max(first["sentiment"], first["negation"]) < min(first["conflict"], first["recall"])


def test_what_probes_find_is_said_of_every_seed_and_of_every_probe_of_the_card(numbers):
    found = json.loads(organism_findings.TABLE.read_text(encoding="utf-8"))
    asked = [(question, truth) for _, question, truth, _ in organism_findings.ROWS]
    assert [(row["question"], row["truth"]) for row in found] == asked
    ships = {part.name.replace("_", "-") for part in pkgutil.iter_modules(probes.__path__) if part.ispkg}
    assert {probe for probe, *_ in organism_findings.ROWS} == set(organism_findings.PROBES) <= ships
    assert all(len(row["before"]) == len(row["after"]) == len(numbers["seeds"]) == 3 for row in found)

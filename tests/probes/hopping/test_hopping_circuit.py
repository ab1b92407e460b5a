"""On a circuit whose every answer is known, the probe finds what was written into it, and the numbers of a plain loop
of Hugging Face with hooks (one generation per patch)."""

import polars as pl
import pytest
import torch

from tests.support import two_hop_circuit as circuit
from workbench.engine.patched_streams import StreamPatches, patched_texts
from workbench.runs.execution import execute

QUESTIONS = circuit.questions()
LATE = [i for i, row in enumerate(QUESTIONS) if row["e1"] in circuit.LATE]
STEPS = 10


def prompt_of(row) -> str:
    said = row["r2_template"].format(row["r1_template"].format(row["e1"]))
    return f"T{said[1:]} is"


@torch.no_grad()
def written(model, ids, hook=None, layer=0, steps=STEPS) -> str:
    """The greedy text after ids, one whole pass a token; `hook` on the output of a block."""
    handle = None if hook is None else model.hf.transformer.h[layer].register_forward_hook(hook)
    new = []
    try:
        for _ in range(steps):
            new.append(int(model.hf(torch.tensor([ids + new]), use_cache=False).logits[0, -1].argmax()))
    finally:
        if handle is not None:
            handle.remove()
    return model.tokenizer.decode(new)


def put(position, state):
    def hook(_m, _a, output):
        hidden = (output if isinstance(output, torch.Tensor) else output[0]).clone()
        hidden[0, position] = state
        return hidden if isinstance(output, torch.Tensor) else (hidden, *output[1:])

    return hook


@torch.no_grad()
def states(model, ids, position) -> list[torch.Tensor]:
    """The outputs of all blocks at a position, by hooks on the plain model."""
    seen = []

    def keep(_m, _a, output):
        seen.append((output if isinstance(output, torch.Tensor) else output[0])[0, position].clone())

    handles = [block.register_forward_hook(keep) for block in model.hf.transformer.h]
    model.hf(torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def at(ids_length, name) -> int:
    return ids_length - 1 if name == "t2" else ids_length - 2  # "… of E1 is"


def test_the_circuit_knows_both_hops_of_every_question_and_composes_those_of_early_subjects(toy_run):
    items = toy_run.table("items")
    assert items["hop1"].all() and items["hop2"].all() and not items["shortcut"].any()
    split = items["split"].to_list()
    assert split == ["incorrect" if i in LATE else "correct" for i in range(len(QUESTIONS))]
    assert items.filter(split="incorrect")["says_bridge"].all()
    inputs = toy_run.table("inputs")
    assert inputs["t2"].to_list() == [len(ids) - 1 for ids in inputs["ids"]]
    assert inputs["t1"].to_list() == [len(ids) - 2 for ids in inputs["ids"]]
    assert not toy_run.info["warnings"]


def rate(run, stage, split="incorrect") -> list[float]:
    return run.table("layers").filter(stage=stage, split=split).sort("layer")["rate"].to_list()


def test_the_description_at_t1_first_finds_the_bridge_after_block_one(toy_run):
    assert rate(toy_run, "bridge_described_t1") == [0, 1, 1, 1]
    assert rate(toy_run, "bridge_described_t1", "correct") == [1, 1, 1, 1]
    assert rate(toy_run, "bridge_described_t2") == [0, 0, 1, 1]  # it arrives in block 2
    assert rate(toy_run, "answer_described_t2") == [0, 0, 0, 0]
    assert rate(toy_run, "answer_described_t2", "correct") == [0, 0, 1, 1]
    assert toy_run.table("layers").filter(pl.col("stage").str.contains("described"))["null"].sum() == 0


def test_cutting_attention_from_the_last_token_kills_at_block_two_and_nowhere_else(toy_run):
    assert rate(toy_run, "knockout") == [0, 0, 1, 0]
    assert rate(toy_run, "knockout", "correct") == [0, 1, 1, 0]


def test_attention_adds_the_bridge_where_it_arrives_and_the_mlp_the_answer_where_it_is_known(toy_run):
    assert rate(toy_run, "attention_bridge") == [0, 0, 1, 0]
    assert rate(toy_run, "attention_bridge", "correct") == [0, 1, 1, 0]
    assert rate(toy_run, "mlp_answer") == [0, 0, 0, 0] == rate(toy_run, "mlp_prediction")
    assert rate(toy_run, "mlp_answer", "correct") == [0, 0, 1, 0] == rate(toy_run, "mlp_prediction", "correct")
    assert rate(toy_run, "mlp_bridge") == [0, 0, 0, 0]  # what adds nothing makes all tokens equal: none is first


@pytest.mark.parametrize("position", ["t1", "t2"])
def test_back_patching_solves_all_questions_with_the_pairs_that_it_must_and_none_with_others(toy_run, position):
    table = toy_run.table("backpatch").filter(position=position)
    found = {(s, t): rate for s, t, rate in table.select("source_layer", "target_layer", "solved").iter_rows()}
    assert set(found) == {(s, t) for s in range(4) for t in range(s)}
    assert {pair for pair, rate in found.items() if rate == 1.0} == circuit.SOLVED[position]
    assert set(found.values()) == {0.0, 1.0}
    assert (table["control"] == 0).all() and (table["preserved"] == 1).all()


@pytest.mark.parametrize("position", ["t1", "t2"])
def test_states_of_the_same_or_an_earlier_layer_solve_none(toy, position):
    ids = [toy.encode(prompt_of(QUESTIONS[i])) for i in LATE]
    own = [states(toy, row, at(len(row), position)) for row in ids]
    cells = [(i, s, t) for i in range(len(ids)) for s in range(4) for t in range(s, 4)]
    patches = StreamPatches(
        torch.stack([own[i][s] for i, s, _ in cells]),
        [i for i, *_ in cells],
        [t for *_, t in cells],
        [at(len(ids[i]), position) for i, *_ in cells],
        list(range(len(cells))),
    )
    found = patched_texts(toy, ids, patches, max_new_tokens=STEPS)
    assert not any(QUESTIONS[LATE[i]]["e3"] in toy.decode(text) for (i, _, _), (text,) in zip(cells, found))


def test_the_oracle_stands_beside_its_control_and_the_chosen_pair_holds_on_other_bridges(toy_run):
    oracle = toy_run.table("oracle").filter(split="incorrect")
    assert oracle["position"].to_list() == ["t1", "t2", "either"] and oracle["pairs"].to_list() == [6, 6, 12]
    assert (oracle["solved"] == 1).all() and (oracle["control"] == 0).all() and (oracle["difference"] == 1).all()
    assert (oracle["n"] == 8).all() and (oracle["rows"] == len(LATE)).all()
    best = toy_run.table("best_pair")
    chosen = {name: (s, t) for name, s, t in best.select("position", "source_layer", "target_layer").iter_rows()}
    assert chosen == {"t1": (1, 0), "t2": (2, 0)}  # of equals the earliest
    assert (best["solved"] == 1).all() and (best["control"] == 0).all()
    assert (best["dev_n"] + best["n"] == 8).all()  # bridges of one side are not of the other
    assert best["solved_low"].null_count() == 2  # four bridges: no interval


def test_first_layers_are_those_of_the_construction_and_stages_their_means(toy_run):
    first = toy_run.table("first_layers")
    late = first.filter(split="incorrect")
    assert late.filter(stage="first_hop")["layer"].unique().to_list() == [1]
    assert late.filter(stage="propagation")["layer"].unique().to_list() == [2]
    assert late.filter(stage="second_hop")["layer"].null_count() == len(LATE)
    early = first.filter(split="correct")
    means = [early.filter(stage=s)["layer"].unique().to_list() for s in ("first_hop", "propagation", "second_hop")]
    assert means == [[0], [1], [2]]
    stages = toy_run.table("stages").filter(split="correct")
    order = [stages.filter(stage=s)["layer"][0] for s in ("first_hop", "propagation", "second_hop", "extraction")]
    assert order == sorted(order)


def test_every_back_patch_and_description_is_that_of_a_plain_loop(toy, toy_run):
    """Two late and one early question, one hooked generation for every cell, texts scored by hand."""
    describe = toy.encode(circuit.DESCRIBE)
    described = toy_run.table("descriptions")
    for i in (0, 5, len(QUESTIONS) - 2):
        row, ids = QUESTIONS[i], toy.encode(prompt_of(QUESTIONS[i]))
        solved = set()
        for name in ("t1", "t2"):
            own = states(toy, ids, at(len(ids), name))
            for s in range(4):
                for t in range(4):
                    text = written(toy, describe, put(len(describe) - 1, own[s]), t) + " "
                    mine = described.filter(row=i, position=name, source_layer=s, target_layer=t)
                    for named, entity in (("bridge", row["e2"]), ("answer", row["e3"])):
                        there = any(f": {entity}{end}" in text[:-1] for end in (" ", ",", ".", ":"))
                        assert (mine.filter(named=named).height == 1) == (there or f"{entity}: " in text[:-1])
                    if t < s and row["e3"] in written(toy, ids, put(at(len(ids), name), own[s]), t):
                        solved.add((name, s, t))
        if i in LATE:
            assert solved == {(name, *pair) for name, pairs in circuit.SOLVED.items() for pair in pairs}
        else:
            assert len(solved) == 12


def test_a_cut_is_that_of_a_plain_mask(toy, toy_run):
    """The same knock-outs by a mask in the plain model's attention (eager), as far as the first answers go."""
    hf = toy.hf
    implementation = hf.config._attn_implementation
    hf.set_attn_implementation("eager")
    try:
        for i in (0, len(QUESTIONS) - 2):
            ids = toy.encode(prompt_of(QUESTIONS[i]))
            plain = written(toy, ids, steps=1)
            events = []
            for block in hf.transformer.h:

                def cut(_m, args, kwargs, here=len(ids)):
                    width = args[0].shape[1] if args else kwargs["hidden_states"].shape[1]
                    mask = torch.full((1, 1, width, width), torch.finfo(torch.float32).min).triu(1)
                    mask[..., here - 1, here - 2] = torch.finfo(torch.float32).min
                    return args, kwargs | {"attention_mask": mask}

                handle = block.attn.register_forward_pre_hook(cut, with_kwargs=True)
                events.append(float(written(toy, ids, steps=1) != plain))
                handle.remove()
            split = "incorrect" if i in LATE else "correct"
            assert events == rate(toy_run, "knockout", split)
    finally:
        hf.set_attn_implementation(implementation)


@pytest.mark.parametrize(
    "asks,to,late,early",
    [
        ("t1", "r1", [0, 1, 0, 0], [1, 0, 0, 0]),  # where the first relation is gathered, for each kind of subject
        ("last", "r2", [0, 0, 0, 0], [1, 0, 0, 0]),  # who fails says the bridge, whatever is asked of it
        ("all", "t1", [0, 0, 1, 0], [0, 1, 1, 0]),
        ("r1", "t1", None, None),  # what comes later cannot be seen: nothing is cut
    ],
)
def test_words_of_the_relations_are_cut_where_they_are_needed(toy, place, tmp_path, asks, to, late, early):
    config = {"describe": "off", "project": False, "positions": (), "knockout": asks, "knockout_to": (to,), "items": 0}
    run = execute("hopping", toy, config=config, data=place / "questions.jsonl", out=tmp_path / "run")
    stage = "knockout" if to == "t1" else f"knockout_{to}"
    if late is None:
        assert run.table("layers").is_empty()
        return
    assert set(run.table("layers")["stage"]) == {stage}
    assert rate(run, stage) == late and rate(run, stage, "correct") == early


def test_the_words_of_the_relations_are_those_before_their_subjects(toy, place):
    from probes.hopping.asking import ask
    from probes.hopping.config import Config
    from workbench.core.context import Context

    for one, row in zip(ask(toy, Config(), Context(data=place / "questions.jsonl")), QUESTIONS):
        words = toy.token_strings(one.prompt)
        assert (words[one.r1], words[one.r2], words[one.t1]) == (
            row["r1_template"].split()[1],
            row["r2_template"].split()[1],
            row["e1"],
        )

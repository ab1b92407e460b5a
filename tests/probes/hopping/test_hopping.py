"""The probe on models of several architectures, on the organism, and through the battery that every probe passes."""

import copy
import json

import numpy as np
import polars as pl
import pytest
import torch

from probes.hopping.asking import FedQuestion
from probes.hopping.config import Config
from probes.hopping.labels import QuestionSet, item_table, others
from probes.hopping.oracle import best_pair, dev_bridges, oracle_table
from probes.hopping.projections import READ, WRITERS, LikeliestToken, first_tokens, project
from probes.hopping.questions import TwoHopQuestion, read_questions
from tests.support import two_hop_circuit as circuit
from tests.support.architectures import build
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.engine.edits import HeadAblation
from workbench.models.loading import load, wrap
from workbench.models.sites import Site
from workbench.runs.checks import CHECKS, check_probe
from workbench.runs.execution import execute

# grouped queries; learned positions; post-norms, soft-caps and a window; parallel blocks
NAMES = ("llama", "gpt2", "gemma2", "gpt_neox")


def asked_of(row: int, bridge: str, answer: str, ids: list[int], t1: int | None = 0) -> FedQuestion:
    question = TwoHopQuestion(row, f"e{row}", (bridge,), (answer,), "p", "", "", "", "", "")
    return FedQuestion(question, {"two_hop": ids}, t1)


@pytest.mark.parametrize("name", NAMES)
def test_what_attention_and_mlps_add_is_read_off_as_plain_hugging_face_reads_it_in_float64(name, monkeypatch):
    hf = build(name)
    exact = copy.deepcopy(hf).double()
    model = wrap(hf, None, name=name)
    draw = torch.Generator().manual_seed(5)
    ids = [torch.randint(3, 64, (n,), generator=draw).tolist() for n in (7, 10, 7)]
    tokens = {"b": list(range(0, 24)), "a": list(range(24, 50)), "other": list(range(3, 40))}
    monkeypatch.setattr("probes.hopping.projections.first_tokens", lambda _m, _p, names: tokens[names[0]])
    asked = [asked_of(i, "b", "a", row) for i, row in enumerate(ids)] + [asked_of(9, "other", "other", [5])]
    found, null = project(model, Config(shuffles=2), Context(), asked[:3], asked)
    seen: dict = {}
    handles = [
        module.register_forward_hook(
            lambda _m, _a, out, key=(w, layer): seen.__setitem__(key, out if torch.is_tensor(out) else out[0])
        )
        for layer in range(3)
        for w, module in enumerate(_writers(exact, name, layer))
    ]
    events = 0
    for i, row in enumerate(ids):
        with torch.no_grad():
            said = int(exact(torch.tensor([row]), use_cache=False).logits[0, -1].argmax())
            for (w, layer), out in list(seen.items()):
                scores = exact.get_output_embeddings()(_norm(exact)(out[0, -1]))
                first = int(scores.argmax())
                expected = [first in tokens["b"], first in tokens["a"], first == said]
                assert found[i, w, :, layer].tolist() == expected, (i, w, layer)
                assert null[i, :, w, :2, layer].tolist() == [[first in tokens["other"]] * 2] * 2
                events += sum(expected)
    for handle in handles:
        handle.remove()
    assert events > 12 and (null[:, :, :, 2] == -1).all() and found.shape == (3, len(WRITERS), len(READ), 3)


def _norm(hf):
    if hasattr(hf, "transformer"):
        return hf.transformer.ln_f
    return hf.gpt_neox.final_layer_norm if hasattr(hf, "gpt_neox") else hf.model.norm


def _writers(hf, name, layer):
    """What adds to the stream: attention and MLP, or the norms behind them."""
    if name == "gpt2":
        return hf.transformer.h[layer].attn, hf.transformer.h[layer].mlp
    if name == "gpt_neox":
        return hf.gpt_neox.layers[layer].attention, hf.gpt_neox.layers[layer].mlp
    block = hf.model.layers[layer]
    if name == "gemma2":
        return block.post_attention_layernorm, block.post_feedforward_layernorm
    return block.self_attn, block.mlp


def test_of_equally_likely_tokens_none_is_first():
    top = LikeliestToken.of(torch.tensor([[0.0, 0.0, 0.0], [0.0, 2.0, 1.0], [2.0, 1.0, 2.0]]))
    assert [top.is_one_of(row, [0, 1, 2]) for row in range(3)] == [False, True, False]


def test_first_tokens_are_those_of_names_as_they_go_on_and_never_white_space():
    model = load("organism")
    found = first_tokens(model, "The country that Novis lives in is", ("Danonia",))
    assert model.encode("in Danonia", bos=False)[-1] in found
    assert all(model.decode([token]).strip() for token in found)


@pytest.mark.parametrize("name", ("mistral", "falcon", "bloom"))
def test_what_an_architecture_cannot_give_is_left_out_with_a_warning_and_the_rest_is_measured(name, toy, tmp_path):
    """Attention outside the interface: no cuts; an MLP that adds the stream itself: no projections."""
    model = wrap(build(name, vocab_size=len(circuit.WORDS)), toy.tokenizer, name=name)
    path = tmp_path / "questions.csv"
    pl.DataFrame(circuit.questions()[:6]).write_csv(path)
    config = {"keep": "all", "describe_prompt": circuit.DESCRIBE, "shuffles": 2, "max_new_tokens": 2}
    run = execute("hopping", model, config=config, data=path, out=tmp_path / "run")
    stages = set(run.table("layers")["stage"])
    said = " ".join(run.info["warnings"])
    assert ("knockout" in stages) == ("No attention is cut" not in said) == (name == "mistral")
    assert ("mlp_answer" in stages) == ("is not read off" not in said) == (name != "bloom")
    assert run.table("backpatch").height == 2 * 3 and "bridge_described_t1" in stages


def test_the_battery_passes_on_the_circuit(toy, place):
    config = {"describe_prompt": circuit.DESCRIBE, "shuffles": 2, "limit": 8, "max_new_tokens": 3, "items": 2}
    assert check_probe("hopping", toy, config=config, data=place / "questions.jsonl") == list(CHECKS)


def test_edits_of_the_run_act_on_everything_that_is_measured(toy, place, tmp_path):
    """Without the head that brings the bridge to the last token nothing is cut, nothing arrives, nothing is solved."""
    config = {"describe_prompt": circuit.DESCRIBE, "shuffles": 2, "keep": "all", "limit": 6, "max_new_tokens": 3}
    run = execute(
        "hopping",
        toy,
        config=config,
        data=place / "questions.jsonl",
        edits=[HeadAblation(((1, 0), (2, 0)))],
        out=tmp_path / "run",
    )
    rates = run.table("layers")
    for stage in ("knockout", "attention_bridge", "bridge_described_t2"):
        assert rates.filter(stage=stage)["rate"].sum() == 0, stage
    assert rates.filter(stage="bridge_described_t1")["rate"].sum() > 0  # that is found without it
    assert (run.table("backpatch")["solved"] == 0).all()


def test_the_run_of_the_organism_looks_into_both_sets_and_says_what_it_does_not_find(tmp_path):
    config = {"limit": 48, "items": 6, "shuffles": 3}
    run = execute("hopping", "organism", config=config, out=tmp_path / "run")
    items = run.table("items")
    assert items["hop1"].mean() > 0.95 and items["hop2"].mean() > 0.95  # its facts
    assert 0.5 < items["two_hop"].mean() < 0.95  # of the compositions it was shown seven in ten
    assert {"correct", "incorrect", "left out"} == set(items["split"])
    assert items.filter(pl.col("shortcut"))["split"].unique().to_list() == ["left out"]
    assert set(run.table("first_layers")["split"]) == {"correct", "incorrect"}
    assert (run.table("oracle")["pairs"] == pl.Series([15, 15, 30, 15, 15, 30])).all()
    assert run.summary["composition_answered"]["n"] == items["bridge"].n_unique()


def test_drawn_descriptions_are_the_same_again_and_find_the_bridge_too(toy, place, tmp_path):
    config = {"describe_prompt": circuit.DESCRIBE, "shuffles": 2, "limit": 6, "describe": "sampled", "knockout": "off"}
    config |= {"positions": (), "project": False, "decoding": "temperature=0.01", "samples": 2}
    first, again = (
        execute("hopping", toy, config=config, data=place / "questions.jsonl", out=tmp_path / name)
        for name in ("first", "again")
    )
    assert first.table("descriptions").equals(again.table("descriptions"))
    rate = first.table("layers").filter(stage="bridge_described_t1", split="incorrect").sort("layer")["rate"].to_list()
    assert rate == [0, 1, 1, 1]
    assert first.table("backpatch").is_empty() and first.table("oracle").is_empty()


def test_nothing_known_is_said_and_leaves_tables_without_rows(toy, tmp_path):
    rows = [row | {"e3": "thing"} for row in circuit.questions()[:4]]
    path = tmp_path / "questions.csv"
    pl.DataFrame(rows).write_csv(path)
    config = {"describe_prompt": circuit.DESCRIBE}
    run = execute("hopping", toy, config=config, data=path, out=tmp_path / "run")
    assert any("use keep=all" in said for said in run.info["warnings"])
    assert run.table("items")["split"].unique().to_list() == ["left out"]
    assert all(run.table(name).is_empty() for name in ("layers", "stages", "backpatch", "oracle", "best_pair"))


def test_another_engine_is_refused(toy, place):
    with pytest.raises(InputError, match="only the engine 'hf' does"):
        execute("hopping", toy, data=place / "questions.jsonl", engine="nnsight")


def test_the_sets_are_those_of_the_paper():
    asked = [asked_of(i, f"b{i}", "a", [5]) for i in range(6)]
    answers = pl.DataFrame(
        {
            "row": range(6),
            "hop1": [True, True, False, True, None, True],
            "hop2": [True, True, True, True, None, False],
            "two_hop": [True, False, True, True, False, True],
            "entity_shortcut": [False, False, False, True, None, False],
            "relation_shortcut": [False, None, False, False, None, False],
            "generated_ids": [[1]] * 6,
        }
    )
    known = item_table(Config(), asked, answers)
    assert known["split"].to_list() == ["correct", "incorrect", "left out", "left out", "incorrect", "left out"]
    every = item_table(Config(keep="all"), asked, answers)
    assert every["split"].to_list() == ["correct", "incorrect", "correct", "correct", "incorrect", "correct"]


def test_donors_share_neither_bridge_nor_answer_and_have_a_place():
    asked = [asked_of(0, "Italy", "Rome", [5]), asked_of(1, "italy", "lira", [5]), asked_of(2, "Peru", "ROME", [5])]
    asked += [asked_of(3, "Kenya", "Nairobi", [5], None), asked_of(4, "Spain", "Madrid", [5])]
    placed = others(Context(), "donors", asked, asked[0], 20, placed=True)
    assert {one.question.row for one in placed} == {4} and len(placed) == 20
    assert {one.question.row for one in others(Context(), "names", asked, asked[0], 20)} == {3, 4}
    assert others(Context(), "donors", asked[:3], asked[0], 5) == []


def test_questions_without_a_first_hop_have_donors_for_their_last_token(toy, place, tmp_path):
    rows = [json.loads(line) for line in (place / "questions.jsonl").read_text().splitlines()]
    data = tmp_path / "prompts.jsonl"
    prompts = [q.prompt for q in read_questions(Config(), place / "questions.jsonl")]
    kept = [{"e2": row["e2"], "e3": row["e3"], "prompt": text} for row, text in zip(rows, prompts)]
    data.write_text("".join(json.dumps(row) + "\n" for row in kept))
    config = {"describe": "off", "project": False, "shuffles": 2, "items": 4}
    run = execute("hopping", toy, config=config, data=data, out=tmp_path / "run")
    assert run.table("inputs")["t1"].null_count() == len(kept)
    oracle = run.table("oracle")
    assert oracle["position"].unique().to_list() == ["t2"] and oracle["control"].null_count() == 0
    assert run.table("backpatch")["control"].null_count() == 0


def test_the_best_pair_is_chosen_without_the_questions_that_it_is_measured_on():
    """Where every pair succeeds at random the chosen one does no better than any other on the rest."""
    draw, names = np.random.default_rng(0), [f"bridge{i}" for i in range(60)]
    asked = tuple(asked_of(i, name, "a", [5]) for i, name in enumerate(names))
    chosen = [QuestionSet("correct", (), ()), QuestionSet("incorrect", asked, ("",) * 60)]
    solved = np.full((60, 2, 2, 12, 12), -1, np.int8)
    below = np.tril_indices(12, -1)
    solved[:, :, :, below[0], below[1]] = draw.random((60, 2, 2, len(below[0]))) < 0.1
    empty = np.zeros((0, 2, 2, 12, 12), np.int8)
    oracle = oracle_table(Config(), chosen, [empty, solved])
    assert oracle.filter(position="t2")["solved"][0] > 0.95  # 66 pairs at one in ten
    assert oracle.filter(position="t2")["control"][0] > 0.95  # and so does the control
    assert abs(oracle.filter(position="t2")["difference"][0]) < 0.05
    best = best_pair(Config(), Context(), chosen, [empty, solved])
    assert (best["dev_solved"] >= 0.2).all() and (best["solved"] < 0.2).all()
    dev = set(dev_bridges(Config(), Context(), np.array(names)))
    assert len(dev) == 30 and best["n"].to_list() == [30, 30]
    hit = solved[[i for i, name in enumerate(names) if name not in dev]][:, 0, 0] > 0
    row = best.row(0, named=True)
    assert row["solved"] == pytest.approx(hit[:, row["source_layer"], row["target_layer"]].mean())


def test_the_sites_that_are_read_are_those_that_a_layer_adds():
    assert [str(Site(kind, 2)) for kind in WRITERS] == ["attn_out.2", "mlp_out.2"]


def test_the_explorer_reads_the_stages_as_courses_over_the_layers_and_opens_rows_as_prompts(toy, toy_run):
    from workbench.explorer import layer_curves, row_prompts
    from workbench.runs.folder import Run

    found = layer_curves.curves([toy_run], fingerprint=toy.fingerprint)
    course = next(c for c in found if c.column == "rate" and c.of == "incorrect · bridge_described_t1")
    assert course.layers == (0, 1, 2, 3) and course.values == (0, 1, 1, 1) and course.at(1)[1] is not None
    items = toy_run.table("items")
    opened = row_prompts.prompts_of(toy_run, "items", items.row(3, named=True), items, read=Run.table)
    assert list(opened[0].ids) == toy_run.table("inputs")["ids"][3].to_list()
    first = toy_run.table("first_layers")
    assert row_prompts.offers(toy_run, "first_layers", first)


def test_states_of_half_precision_give_the_texts_that_the_same_weights_give_in_whole_passes():
    from workbench.engine.capture import capture
    from workbench.engine.patched_streams import StreamPatches, patched_texts, whole_passes

    model = wrap(build("llama").to(torch.bfloat16), None, name="half")
    ids = [[5, 9, 33, 12, 7], [40, 8, 22]]
    acts = capture(model, ids, ["resid_post.2"], positions=[[3], [1]])
    states = acts["resid_post.2"].flatten(0, 1)  # float32, as the probe keeps them
    patches = StreamPatches(states, [0, 1, 0, 1], [0, 0, 1, 1], [3, 1, 4, 2], [0, 1, 1, 0])
    found = patched_texts(model, ids, patches, max_new_tokens=1)
    assert found == whole_passes(model, ids, patches, max_new_tokens=1)


def test_figures_show_the_numbers_of_the_tables(toy_run):
    from probes.hopping.figures import FIGURES
    from workbench.figures.run_tables import collect

    figures, reasons = collect(toy_run, FIGURES)
    assert reasons == {} and set(figures) == set(FIGURES)
    table = toy_run.table("backpatch").filter(position="t2")
    shares = {(s, t): v for s, t, v in table.select("source_layer", "target_layer", "solved").iter_rows()}
    drawn = [trace for trace in figures["back_patching"].data if trace.xaxis == "x3"]  # t2, the own state
    found = {
        (int(base + 0.5), int(x)): float(colour)
        for trace in drawn
        if not isinstance(trace.marker.color, str)
        for x, base, colour in zip(trace.x, trace.base, trace.marker.color)
    }
    assert found == shares
    reached = [t for t in figures["first_layers"].data if t.xaxis == "x2" and t.name == "failed"]
    assert sorted(reached[0].x) == [0, 0, 1, 1]  # what no question reaches is shown as that


def test_a_drawn_text_does_not_depend_on_which_other_questions_are_looked_into(toy, place, tmp_path):
    config = {
        "describe_prompt": circuit.DESCRIBE,
        "shuffles": 2,
        "describe": "sampled",
        "knockout": "off",
        "samples": 2,
    }
    config |= {"positions": (), "project": False, "decoding": "temperature=1.5", "keep": "all"}
    few, many = (
        execute("hopping", toy, config=config | {"items": n}, data=place / "questions.jsonl", out=tmp_path / str(n))
        for n in (3, 0)
    )
    rows = few.table("descriptions")["row"].unique().to_list()
    assert rows and few.table("descriptions").equals(many.table("descriptions").filter(pl.col("row").is_in(rows)))

"""Losses, accuracies and speeds without modules against plain Hugging Face, one text at a time; and whole runs."""

from __future__ import annotations

import functools
import json

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM

from probes import layer_redundancy
from probes.layer_redundancy.config import Config
from probes.layer_redundancy.drop_orders import check_sizes, modules_of, one_by_one, parts_of, plans, ranked, sizes
from probes.layer_redundancy.halves import read_halves
from probes.layer_redundancy.similarities import deciding
from probes.layer_redundancy.stream_pairs import measure, pair_of, pass_of
from tests.probes.layer_redundancy.test_similarities import texts_of
from tests.support.architectures import build
from workbench.cli.main import run as command_line
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.engine.dropping import read_modules
from workbench.engine.evaluation import encode_choices, next_tokens
from workbench.models.loading import load, wrap
from workbench.models.multiply_adds import multiply_adds
from workbench.runs import execution as runs
from workbench.runs.checks import check_probe
from workbench.stats.clusters import clusters_of, crossed_interval, mean_interval, share_interval

WORDS = "Tom Lily dog cat park tree ball happy sad big small ran saw and the a went to play with was".split()
SEED = 3  # of weights on which the two orders differ
SHORT = {"random_draws": 3, "max_length": 24, "limit": 24, "timing_rounds": 0, "max_tokens": 200}


@pytest.fixture(scope="module")
def tiny(tiny_llama):
    return load(str(tiny_llama))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(6, 20))) for _ in range(24)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    path = tmp_path_factory.mktemp("choices") / "choices.jsonl"
    fronts = ("The dog", "Lily saw a big", "Tom went to the", "The cat and the", "A small happy", "The sad tree")
    rows = [{"prompt": front, "choices": ["ran", "tree", "park"], "answer": n % 3} for n, front in enumerate(fronts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def result(tiny, data, questions):
    also = {"also": ("iterative", "consecutive"), "choices": str(questions)}
    return layer_redundancy.run(tiny, Config(**(SHORT | also)), Context(data=data))


class WithoutModules:
    """The plain model in float64 and eager attention, whose modules return zeros (a block: what came in) by code of the
    test put in their place."""

    def __init__(self, folder, modules):
        self.hf = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float64)
        for name in modules:
            kind, layer = name.split(".")
            block = self.hf.model.layers[int(layer)]
            if kind == "attention":
                block.self_attn.forward = lambda hidden_states, **_: (torch.zeros_like(hidden_states), None)
            elif kind == "mlp":
                block.mlp.forward = torch.zeros_like
            else:
                block.forward = lambda hidden_states, **_: hidden_states

    @torch.no_grad()
    def __call__(self, ids):
        """(mean loss, share of likeliest tokens that are right) of one text."""
        scores = self.hf(torch.tensor([ids]), use_cache=False).logits[0, :-1].log_softmax(-1)
        target = torch.tensor(ids[1:])
        return float(-scores.gather(1, target[:, None]).mean()), float((scores.argmax(-1) == target).double().mean())


def test_losses_and_accuracies_are_those_of_plain_hugging_face_without_the_modules(result, tiny_llama):
    rows, draws = result.tables["dropping"], result.tables["draws"]
    ids = result.tables["inputs"].filter(split="loss")["ids"].to_list()
    assert len(ids) == 12 and rows.height > 40
    each = clusters_of(np.arange(len(ids)))
    picked = rows.filter((pl.col("order") != "random") & pl.col("n").is_in([0, 1, 2, 5]))
    for row in picked.iter_rows(named=True):
        own = WithoutModules(tiny_llama, row["modules"])
        found = np.array([own(text) for text in ids])
        assert row["loss"] == pytest.approx(found[:, 0].mean(), abs=1e-5)
        assert row["accuracy"] == pytest.approx(found[:, 1].mean(), abs=1e-9)
        low, high = mean_interval(found[:, 0], each)
        assert (row["ci_low"], row["ci_high"]) == pytest.approx((low, high), abs=1e-4)
        low, high = share_interval(found[:, 1], each)
        assert (row["accuracy_low"], row["accuracy_high"]) == pytest.approx((float(low), float(high)), abs=1e-6)
        assert row["texts"] == 12 and row["tokens"] == sum(len(text) - 1 for text in ids)
    some = draws.filter(component="joint", n=5)
    losses = []
    for row in some.iter_rows(named=True):
        own = WithoutModules(tiny_llama, row["modules"])
        losses.append([own(text)[0] for text in ids])
        assert row["loss"] == pytest.approx(np.mean(losses[-1]), abs=1e-5)
    (together,) = rows.filter(component="joint", n=5, order="random").iter_rows(named=True)
    assert together["loss"] == pytest.approx(np.mean(losses), abs=1e-5) and together["draws"] == 3
    wanted = crossed_interval(np.array(losses), each)
    assert (together["ci_low"], together["ci_high"]) == pytest.approx(wanted, abs=1e-3)
    (chosen,) = rows.filter(component="joint", n=5, order="similarity").iter_rows(named=True)
    own = WithoutModules(tiny_llama, chosen["modules"])
    difference = np.array([own(text)[0] for text in ids]) - np.array(losses)
    assert chosen["minus_random"] == pytest.approx(difference.mean(), abs=1e-5)
    wanted = crossed_interval(difference, each)
    assert (chosen["minus_random_low"], chosen["minus_random_high"]) == pytest.approx(wanted, abs=1e-3)
    assert chosen["random_as_good"] == np.mean([np.mean(loss) <= chosen["loss"] for loss in losses])


def test_right_choices_are_counted_without_the_modules_too(result, tiny_llama, tiny, questions):
    """The likeliest of three words behind a prompt, summed over its tokens, by the plain model."""
    asked = encode_choices(tiny, questions)
    for row in result.tables["dropping"].filter(order="similarity", n=1).iter_rows(named=True):
        own = WithoutModules(tiny_llama, row["modules"])
        right = []
        for choices, front, answer in asked:
            totals = []
            for ids in choices:
                with torch.no_grad():
                    scores = own.hf(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
                totals.append(sum(float(scores[at - 1, ids[at]]) for at in range(front, len(ids))))
            right.append(int(np.argmax(totals)) == answer)
        assert row["choice_accuracy"] == pytest.approx(np.mean(right)) and row["questions"] == 6


def test_the_order_of_dropping_is_that_of_similarity_first_last_and_random_sets_of_that_size(result):
    layers, rows = result.tables["layers"], result.tables["dropping"]
    for kind in ("attention", "mlp", "block"):
        own = layers.filter(component=kind)
        order = own.sort("similarity", descending=True)["layer"].to_list()
        assert own.sort("rank")["layer"].to_list() == order
        for n in rows.filter(component=kind)["n"].unique():
            of = {row["order"]: row["modules"] for row in rows.filter(component=kind, n=n).iter_rows(named=True)}
            assert of["similarity"] == [f"{kind}.{layer}" for layer in order[:n]]
            assert of["first"] == [f"{kind}.{layer}" for layer in range(n)]
            assert of["last"] == [f"{kind}.{layer}" for layer in range(4, 4 - n, -1)]
    both = layers.filter(pl.col("component") != "block").sort("similarity", descending=True).head(5)
    joint = rows.filter(component="joint", n=5, order="similarity")["modules"][0].to_list()
    assert joint == [f"{kind}.{layer}" for kind, layer in both.select("component", "layer").rows()]
    draws = result.tables["draws"]
    assert draws.filter(component="joint", n=5)["modules"].list.len().to_list() == [5, 5, 5]
    assert draws["modules"].list.unique().list.len().equals(draws["modules"].list.len())
    assert rows.filter(order="none").height == 1


def test_similarities_are_measured_anew_after_every_module_that_is_dropped():
    """By hand: of the model whose chosen blocks are gone, the block whose ends are most alike. On these weights the
    order is another one than that of the whole model's similarities."""
    hf = build("llama", seed=SEED, num_hidden_layers=6)
    model, texts = wrap(build("llama", seed=SEED, num_hidden_layers=6)), texts_of(64)
    modules = modules_of(model, "block")
    pairs = [pair_of(model, *module) for module in modules]
    sums = measure(model, texts, pairs, run=pass_of(model, 0, Context()), context=Context(), label="")
    at_once = ranked(dict(zip(modules, deciding(sums, Config()))), modules)
    found = one_by_one(model, modules, 4, texts, Config(), Context())
    blocks, left, wanted = list(hf.model.layers), list(range(6)), []
    for _ in range(4):
        hf.model.layers = torch.nn.ModuleList([blocks[layer] for layer in left])
        hf.config.num_hidden_layers = len(left)
        ends: dict[int, list] = {layer: [] for layer in left}
        handles = []
        for layer in left:

            def note(_m, args, output, cos=ends[layer]):
                cos.append(torch.nn.functional.cosine_similarity(args[0][0].double(), output[0].double(), dim=-1))

            handles.append(blocks[layer].register_forward_hook(note))
        with torch.no_grad():
            for ids in texts.ids:
                hf(torch.tensor([ids]), use_cache=False)
        for handle in handles:
            handle.remove()
        means = {layer: float(torch.cat(cos).mean()) for layer, cos in ends.items()}
        wanted.append(max(means, key=means.get))
        left.remove(wanted[-1])
    assert [layer for _, layer in found] == wanted != [layer for _, layer in at_once[:4]]


def test_of_a_written_text_only_its_own_tokens_count(tiny, tiny_llama, data):
    config = Config(**(SHORT | {"template": "Once upon a time {prompt} and so on.", "max_length": 60, "drop_n": (1,)}))
    found = layer_redundancy.run(tiny, config, Context(data=data))
    halves = read_halves(tiny, config, Context(data=data))
    own = WithoutModules(tiny_llama, ())
    losses = []
    for ids, (start, end) in zip(halves["loss"].ids, halves["loss"].own):
        words = tiny.decode(ids[start:end]).strip()
        assert 0 < start < end < len(ids) and words.split()[0] in WORDS and words.split()[-1] in WORDS
        with torch.no_grad():
            scores = own.hf(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
        losses.append(np.mean([-float(scores[at - 1, ids[at]]) for at in range(start, end)]))
    assert found.tables["dropping"]["loss"][0] == pytest.approx(np.mean(losses), abs=1e-5)
    counted = sum(end - start for start, end in halves["similarity"].own)
    assert found.tables["layers"]["tokens"].unique().to_list() == [counted]
    short = Config(**(SHORT | {"template": "Once upon a time {prompt} and so on.", "max_length": 24}))
    cut = read_halves(tiny, short, Context(data=data))["loss"]
    for ids, (_, end) in zip(cut.ids, cut.own):
        assert len(ids) <= 24 and tiny.decode(ids[end:]).strip() == "and so on."


def test_a_stretch_of_blocks_is_the_one_whose_ends_are_most_alike(result, tiny, data):
    (row,) = result.tables["dropping"].filter(component="block", order="consecutive", n=2).iter_rows(named=True)
    ids = result.tables["inputs"].filter(split="similarity")["ids"].to_list()
    means = []
    for start in range(4):
        cos = []
        for text in ids:
            with torch.no_grad():
                states = tiny.hf(torch.tensor([text]), output_hidden_states=True, use_cache=False).hidden_states
            last = tiny_block_output(tiny, text) if start == 3 else states[start + 2][0]
            cos.append(torch.nn.functional.cosine_similarity(states[start][0].double(), last.double(), dim=-1))
        means.append(float(torch.cat(cos).mean()))
    start = int(np.argmax(means))
    assert row["modules"] == [f"block.{start}", f"block.{start + 1}"]


def tiny_block_output(model, ids):
    """What the last block leaves, before the final norm."""
    seen = []
    handle = model.hf.model.layers[-1].register_forward_hook(lambda _m, _a, output: seen.append(output[0]))
    with torch.no_grad():
        model.hf(torch.tensor([ids]), use_cache=False)
    handle.remove()
    return seen[0]


def test_texts_that_decide_are_not_those_that_losses_are_of(result):
    inputs = result.tables["inputs"]
    assert set(inputs["split"]) == {"similarity", "loss"} and inputs["row"].is_unique().all()
    assert result.tables["layers"]["texts"].unique().to_list() == [12]


def test_a_text_that_is_there_twice_is_in_one_half_alone(tiny, data, tmp_path):
    (tmp_path / "texts.jsonl").write_text(data.read_text() * 2)
    context = Context(data=tmp_path / "texts.jsonl")
    halves = read_halves(tiny, Config(limit=40), context)
    sides = [{tuple(ids) for ids in half.ids} for half in halves.values()]
    assert not sides[0] & sides[1] and [half.n for half in halves.values()] == [12, 12]
    assert "24 of the 48 texts in" in context.warnings[0] and "each is used once" in context.warnings[0]


def test_chosen_at_the_best_similarity_held_out_similarity_is_that_of_the_other_half(tiny, data):
    context = Context(data=data)
    config = Config(**SHORT)
    found = layer_redundancy.run(tiny, config, context).tables["layers"]
    halves = read_halves(tiny, config, Context(data=data))
    pairs = [pair_of(tiny, "block", layer) for layer in range(5)]
    sums = measure(tiny, halves["loss"], pairs, run=pass_of(tiny, 0, Context()), context=Context(), label="")
    np.testing.assert_allclose(found.filter(component="block")["held_out"], 1 - deciding(sums, config), atol=1e-6)


def test_counted_multiply_adds_are_those_of_an_operation_counter(tiny):
    """Matrix products of the pass with plain attention, counted by PyTorch; a causal pass needs half of the scores that
    eager attention makes, and the unembedding counts."""
    from torch.utils.flop_counter import FlopCounterMode

    tokens = 16
    for name in ("llama", "gpt2", "gpt_neox"):
        hf = build(name)
        model = wrap(build(name))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            hf(input_ids=torch.arange(3, 3 + tokens)[None], use_cache=False)
        counted = multiply_adds(model, tokens)
        scores = 2 * model.n_heads * model.d_head * model.n_layers * (tokens * tokens - tokens * (tokens + 1) // 2)
        # FLOPs are two a multiply-add; rotations by a product of an outer kind are not counted here
        assert counter.get_total_flops() / 2 == pytest.approx(counted.whole + scores, rel=2e-3)
    whole = multiply_adds(tiny, 10)
    assert whole.of("block", 1) == pytest.approx(whole.of("attention", 1) + whole.of("mlp", 1))


def test_windows_and_experts_count_what_is_seen_and_what_is_chosen():
    sliding = multiply_adds(wrap(build("gemma2")), 20)
    assert (
        sliding.attention[0]
        < sliding.attention[1]
        == pytest.approx(sliding.attention[0] + 2 * 32 * (210 - (21 + 14 * 6)))
    )
    mixed, model = multiply_adds(wrap(build("mixtral")), 1), build("mixtral")
    block = model.model.layers[0].mlp
    gate = block.gate.weight.numel()
    experts = sum(p.numel() for p in block.experts.parameters())
    assert mixed.mlp[0] == pytest.approx(gate + experts / 2)


def test_speed_is_the_whole_models_multiply_adds_over_those_that_are_left(result, tiny):
    counted = multiply_adds(tiny, 512)
    for row in result.tables["dropping"].filter(pl.col("modules").is_not_null()).iter_rows(named=True):
        gone = sum(counted.of(kind, int(layer)) for kind, layer in (name.split(".") for name in row["modules"]))
        assert row["speed"] == pytest.approx(counted.whole / (counted.whole - gone))


def test_next_tokens_of_models_whose_scores_are_their_own():
    """Soft-capped, scaled, and those of a head of their own, against the plain model."""
    for name in ("gemma2", "granite", "modernbert-decoder"):
        hf = build(name)
        model = wrap(build(name))
        rows = [[3, 9, 21, 5, 7], [8, 2, 40]]
        for ids, found in zip(rows, next_tokens(model, rows)):
            with torch.no_grad():
                scores = hf(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].double().log_softmax(-1)
            target = torch.tensor(ids[1:])
            np.testing.assert_allclose(found[0], -scores.gather(1, target[:, None])[:, 0].numpy(), atol=1e-4)
            assert found[1].tolist() == (scores.argmax(-1) == target).tolist()


def test_numbers_of_modules_default_to_an_eighth_a_quarter_and_a_half():
    assert sizes(Config(), 32) == [4, 8, 16] and sizes(Config(), 5) == [1, 2] and sizes(Config(), 1) == []
    assert sizes(Config(drop_n=(1, 4, 40)), 32) == [1, 4]
    assert parts_of(Config(components=("joint",))) == ["attention", "mlp"]


def test_a_model_of_one_layer_drops_one_of_its_sub_layers():
    told = []
    check_sizes(Config(), 1, told.append)
    assert [line.split(":")[0] for line in told] == [
        f"Nothing is dropped of {kind}" for kind in ("attention", "mlp", "block")
    ]
    with pytest.raises(InputError, match="one layer, so nothing is left where attention or mlp is dropped; add joint"):
        check_sizes(Config(components=("attention", "mlp")), 1, told.append)


def test_equal_modules_are_dropped_in_the_order_of_a_pass(tiny):
    modules = modules_of(tiny, "joint")
    assert modules[:3] == [("attention", 0), ("mlp", 0), ("attention", 1)]
    assert ranked(dict.fromkeys(modules, 0.5), modules) == modules


# whole runs


def test_the_battery(tiny, data):
    check_probe("layer-redundancy", tiny, config=SHORT | {"also": ("iterative", "consecutive")}, data=data)


def test_a_run_leaves_its_modules_as_files_that_say_what_dropping_them_did_and_its_speeds(tiny, data, tmp_path):
    run = runs.execute("layer-redundancy", tiny, config=SHORT | {"timing_rounds": 2}, data=data, out=tmp_path / "run")
    rows = run.table("dropping").filter(order="similarity")
    files = sorted(path.name for path in run.folder.glob("dropped_*.json"))
    assert files == sorted(f"dropped_{kind}_{n}.json" for kind, n in rows.select("component", "n").rows())
    found = read_modules(run.folder / "dropped_joint_5.json")
    wanted = rows.filter(component="joint", n=5)
    assert [f"{kind}.{layer}" for kind, layer in found.modules] == wanted["modules"][0].to_list()
    assert f"loss {wanted['loss'][0]:.3f} without them" in found.note and found.model["fingerprint"] == tiny.fingerprint
    speeds = json.loads((run.folder / "speed.json").read_text())
    assert speeds["rounds"] == 2 and speeds["tokens"] == 512 and speeds["device"]
    assert {(row["component"], row["n"]) for row in speeds["rows"]} == {
        ("none", 0),
        *rows.select("component", "n").rows(),
    }
    assert all(row["seconds"] > 0 and row["speed"] > 0 for row in speeds["rows"])
    assert (
        not runs.execute("layer-redundancy", tiny, config=SHORT, data=data, out=tmp_path / "b")
        .folder.joinpath("speed.json")
        .exists()
    )


def test_a_run_with_dropped_modules_is_that_of_the_exported_model(tiny_llama, data, tmp_path, capsys):
    """`--edit` against the folder that `export-pruned` writes."""
    from workbench.engine.dropping import save_modules

    mask = tmp_path / "dropped.json"
    save_modules(mask, [("attention", 1), ("mlp", 3)], model=load(str(tiny_llama)))
    assert command_line(["export-pruned", str(tiny_llama), str(mask), str(tmp_path / "out")]) == 0
    words = ["run", "representation-geometry", "--data", str(data), "--quiet", "--set=layers=all", "--set=draws=0"]
    words += ["--set=curve=false", "--set=ablate=none", "--set=fit_range=2,10"]
    for name, more in {
        "edited": ["--model", str(tiny_llama), "--edit", str(mask)],
        "exported": ["--model", str(tmp_path / "out")],
        "plain": ["--model", str(tiny_llama)],
    }.items():
        assert command_line([*words, *more, "--out", str(tmp_path / name)]) == 0
    edited, exported, plain = (runs.open_run(tmp_path / name) for name in ("edited", "exported", "plain"))
    assert edited.info["edits"][0]["edit"] == "DropModules" and not exported.info["edits"]
    a, b, c = (run.table("layers")["rankme"].to_numpy() for run in (edited, exported, plain))
    np.testing.assert_allclose(a, b, rtol=1e-5)
    assert np.abs(a - c).max() > 1e-2


@pytest.mark.parametrize(
    "config, message",
    [
        ({"drop_n": (5, 9), "components": ("block",)}, "leaves nothing to drop of a model of 5 layers"),
        ({"drop_n": (9,), "components": ("attention",)}, "drop_n=9 leaves nothing to drop of a model of 5 layers"),
        ({"components": ()}, "names nothing to drop"),
        ({"also": ("consecutive",), "components": ("mlp",)}, "also=consecutive drops blocks"),
        ({"min_length": 30, "max_length": 20}, "no text can have at least min_length=30"),
        ({"min_length": 200, "max_length": 200}, "texts have at least 200 tokens; similarities and losses"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_sentence(tiny, data, config, message):
    with pytest.raises(InputError, match=message):
        runs.execute("layer-redundancy", tiny, config=SHORT | config, data=data)


def test_one_text_is_refused_before_a_model_is_loaded_and_few_have_no_intervals(tiny, tmp_path):
    path = tmp_path / "few.txt"
    path.write_text("one two three\n")
    with pytest.raises(InputError, match="few.txt has one text"):
        runs.prepare("layer-redundancy", {}, path)
    path.write_text("one two three\nfour five six\nseven eight nine\n")
    found = layer_redundancy.run(tiny, Config(**SHORT), Context(data=path))
    for table, columns in {
        "layers": ("ci_low", "ci_high", "held_out_low"),
        "dropping": ("ci_low", "ci_high", "accuracy_low", "minus_random_high"),
    }.items():
        assert all(found.tables[table][column].null_count() == found.tables[table].height for column in columns)


@pytest.mark.parametrize("name", ["gemma2", "gpt_neox"])
def test_post_norms_and_parallel_blocks_run_from_end_to_end(name, tiny, data):
    """The tokenizer of the tiny Llama over another architecture."""
    model = wrap(build(name, vocab_size=512), tiny.tokenizer, name=name)
    found = layer_redundancy.run(model, Config(**SHORT), Context(data=data))
    rows = found.tables["dropping"]
    assert rows["loss"].is_finite().all() and set(rows["component"]) == {"none", "attention", "mlp", "block", "joint"}
    assert found.tables["layers"].height == 9


def test_plans_are_drawn_by_the_seed_and_each_number_has_its_own(tiny):
    scores = {module: float(module[1]) for kind in ("attention", "mlp", "block") for module in modules_of(tiny, kind)}
    config = Config(random_draws=4)
    drawn = functools.partial(plans, tiny, scores, None, config)
    one, same, other = (drawn(Context(seed=seed)) for seed in (0, 0, 1))
    assert one == same != other

"""Similarities against plain Hugging Face hidden states in float64, and on modules whose truth is planted."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from probes.layer_redundancy.config import Config
from probes.layer_redundancy.halves import HalfTexts
from probes.layer_redundancy.similarities import deciding, layer_table, ratio_interval, rescales
from probes.layer_redundancy.stream_pairs import SUMS, measure, pair_of, pass_of, stretch_of, turned
from tests.support.architectures import PARTLY, build
from workbench.core.context import Context
from workbench.core.errors import InputError, RunFailed
from workbench.engine.capture import logits
from workbench.engine.dropping import DropModules
from workbench.models.loading import wrap
from workbench.stats.clusters import clusters_of, mean_interval

KINDS = ("attention", "mlp", "block")
LENGTHS = (9, 5, 12, 3, 7, 6)


def texts_of(vocabulary: int, lengths=LENGTHS, seed: int = 0) -> HalfTexts:
    rng = np.random.default_rng(seed)
    ids = [rng.integers(3, vocabulary, length).tolist() for length in lengths]
    return HalfTexts(ids, list(range(len(ids))), [(0, len(row)) for row in ids])


def table_of(model, texts: HalfTexts, config: Config = Config(), kinds=KINDS):
    pairs = [pair_of(model, kind, layer) for kind in kinds for layer in range(model.n_layers)]
    context = Context()
    sums = measure(model, texts, pairs, run=pass_of(model, 24, context), context=context, label="")
    return layer_table(pairs, sums, sums, config), sums, pairs


def states(hf, model, ids):
    """By hand, one text at a time: what comes into every block and what attention and MLP add, [layer] → ([T, d],) of
    float64, by hooks of the test on the modules that the architecture names."""
    seen: dict = {}
    handles = []

    def first(value):
        return (value if isinstance(value, torch.Tensor) else value[0]).detach().clone().double().reshape(len(ids), -1)

    for layer, block in enumerate(model.anatomy.blocks):

        def enter(_m, args, kwargs, layer=layer):
            seen["x", layer] = first(args[0] if args else kwargs["hidden_states"])

        def leave(key, layer=layer):
            def hook(_m, _args, output):
                seen[key, layer] = first(output)

            return hook

        handles.append(block.block.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(block.block.register_forward_hook(leave("y")))
        handles.append(block.attention_writer.register_forward_hook(leave("attention")))
        handles.append(block.mlp_writer.register_forward_hook(leave("mlp")))
    try:
        with torch.no_grad():
            hf(input_ids=torch.tensor([ids]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def cosines(hf, model, ids) -> dict:
    """(kind, layer) → cosine of every token [T]: x and x + what is added, or the whole block's ends."""
    seen, out = states(hf, model, ids), {}
    cos = torch.nn.functional.cosine_similarity
    for layer in range(model.n_layers):
        x, a, m = (seen[key, layer] for key in ("x", "attention", "mlp"))
        before = x if model.anatomy.blocks[layer].mid_reader is None else x + a
        out["attention", layer] = cos(x, x + a, dim=-1)
        out["mlp", layer] = cos(before, before + m, dim=-1)
        out["block", layer] = cos(x, seen["y", layer], dim=-1)
    return {key: value.numpy() for key, value in out.items()}


@pytest.fixture(scope="module")
def models():
    return functools.cache(lambda name: wrap(build(name), name=name))


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3", "gemma2", "olmo2", "gpt_neox", "falcon", "opt", "mixtral"])
def test_similarities_are_those_of_plain_hugging_face_one_text_at_a_time(models, name):
    model = models(name)
    texts = texts_of(model.vocab_size)
    frame, _, _ = table_of(model, texts)
    each = [cosines(model.hf, model, ids) for ids in texts.ids]
    for row in frame.iter_rows(named=True):
        own = [cos[row["component"], row["layer"]] for cos in each]
        assert abs(row["similarity"] - np.concatenate(own).mean()) < 2e-6
        assert abs(row["without_first"] - np.concatenate([c[1:] for c in own]).mean()) < 2e-6
        assert abs(row["text_mean"] - np.mean([c.mean() for c in own])) < 2e-6
        assert row["importance"] == pytest.approx(1 - row["similarity"], abs=1e-12)
        assert (row["texts"], row["tokens"]) == (len(LENGTHS), sum(LENGTHS))
        low, high = mean_interval(np.concatenate(own), clusters_of(np.repeat(np.arange(len(own)), LENGTHS)))
        assert row["ci_low"] == pytest.approx(low, abs=1e-5) and row["ci_high"] == pytest.approx(high, abs=1e-5)


def test_a_stretch_of_blocks_is_measured_between_its_ends(models):
    model = models("llama")
    texts = texts_of(model.vocab_size)
    context = Context()
    sums = measure(model, texts, [stretch_of(0, 2)], run=pass_of(model, 0, context), context=context, label="")
    own = [states(model.hf, model, ids) for ids in texts.ids]
    cos = [torch.nn.functional.cosine_similarity(s["x", 0], s["y", 1], dim=-1) for s in own]
    assert abs(1 - deciding(sums, Config())[0] - float(torch.cat(cos).mean())) < 2e-6


# planted truth


def planted(layers: int = 6, width: int = 16):
    """A Llama of random weights; tests set what its modules do."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=40,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config).eval()


def test_modules_that_write_nothing_rank_first_with_a_similarity_of_one_and_dropping_them_changes_no_bit():
    hf = planted()
    zeroed = [("attention", 1), ("attention", 4), ("mlp", 0), ("mlp", 4)]
    with torch.no_grad():
        for kind, layer in zeroed:
            block = hf.model.layers[layer]
            (block.self_attn.o_proj if kind == "attention" else block.mlp.down_proj).weight.zero_()
    model = wrap(hf)
    texts = texts_of(40)
    frame, _, _ = table_of(model, texts)
    one = frame.filter(similarity=1.0).select("component", "layer").rows()
    assert set(one) == {*zeroed, ("block", 4)}
    assert frame.filter(importance=0.0).height == 5
    first = {
        kind: frame.filter(component=kind).sort("rank")["layer"].to_list()[: 1 if kind == "block" else 2]
        for kind in KINDS
    }
    assert first == {"attention": [1, 4], "mlp": [0, 4], "block": [4]}
    whole = logits(model, texts.ids)
    for modules in (zeroed, [("block", 4)]):
        assert torch.equal(logits(model, texts.ids, edits=[DropModules(tuple(modules))]), whole)
    assert not torch.equal(logits(model, texts.ids, edits=[DropModules((("mlp", 1),))]), whole)


class Turning(torch.nn.Module):
    """In place of an MLP: writes a vector at a right angle to the stream, `ratio` times as long; the stream is read off
    a place that the block fills."""

    def __init__(self, ratio: float, stream: list):
        super().__init__()
        self.ratio, self.stream = ratio, stream

    def forward(self, x):
        own = self.stream[0]
        pairs = own.unflatten(-1, (-1, 2))
        return self.ratio * torch.stack([-pairs[..., 1], pairs[..., 0]], -1).flatten(-2)


class Stretching(Turning):
    """Writes a multiple of the stream itself."""

    def forward(self, x):
        return self.ratio * self.stream[0]


def with_mlp(kind, ratio: float, layer: int = 2):
    hf = planted()
    stream: list = []
    block = hf.model.layers[layer]
    block.post_attention_layernorm.register_forward_pre_hook(
        lambda _m, args: stream.__setitem__(slice(None), [args[0]])
    )
    mlp = kind(ratio, stream)
    mlp.gate_proj, mlp.up_proj, mlp.down_proj, mlp.act_fn = (
        getattr(block.mlp, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")
    )
    block.mlp = mlp
    return wrap(hf)


@pytest.mark.parametrize("ratio", [0.01, 0.5, 1.0, 3.0])
def test_a_vector_at_a_right_angle_gives_one_over_the_root_of_one_plus_its_squared_ratio(ratio):
    frame, _, _ = table_of(with_mlp(Turning, ratio), texts_of(40), kinds=("mlp",))
    row = frame.row(2, named=True)
    wanted = 1 / np.sqrt(1 + ratio**2)
    assert row["similarity"] == pytest.approx(wanted, abs=1e-6) and row["null"] == pytest.approx(wanted, abs=1e-6)
    assert row["importance"] == pytest.approx(1 - wanted, rel=1e-4)  # as exact where it is small
    assert row["norm_change"] == pytest.approx(ratio, rel=1e-5) and row["scale"] == pytest.approx(1, abs=1e-6)
    assert not row["rescales"]


@pytest.mark.parametrize("factor", [3.0, 0.25])
def test_a_module_that_only_rescales_has_a_similarity_of_one_and_is_flagged_and_is_missed(factor):
    """The blind spot of a cosine: it ranks first, and dropping it changes the logits."""
    model, texts = with_mlp(Stretching, factor - 1), texts_of(40)
    frame, _, _ = table_of(model, texts, kinds=("mlp",))
    row = frame.row(2, named=True)
    assert row["similarity"] == pytest.approx(1, abs=1e-6) and row["rank"] == 1
    assert row["rescales"] and row["scale"] == pytest.approx(factor, rel=1e-5)
    assert row["norm_change"] == pytest.approx(abs(factor - 1), rel=1e-5)
    without = logits(model, texts.ids, edits=[DropModules((("mlp", 2),))])
    assert (without - logits(model, texts.ids)).abs().max() > 1e-3


def test_first_tokens_that_no_module_turns_lower_importance_and_both_ways_leave_them_out():
    """The first token's embedding is a thousand times as long as others: it alone is a sink."""
    hf = planted()
    with torch.no_grad():
        hf.model.embed_tokens.weight[1] *= 3000
    texts = texts_of(40, (9, 8, 7, 9, 6))
    texts = HalfTexts([[1, *ids[1:]] for ids in texts.ids], texts.rows, texts.own)
    model = wrap(hf)
    frame, sums, pairs = table_of(model, texts, kinds=("mlp",))
    row = frame.row(0, named=True)
    # one of (9, 8, 7, 9, 6) tokens each, and exactly the others count
    assert row["without_sinks"] == row["without_first"] < row["similarity"]
    assert 1 - row["similarity"] == pytest.approx((1 - row["without_first"]) * (39 - 5) / 39, rel=1e-3)
    for tokens in ("without_first", "without_sinks"):
        assert 1 - deciding(sums, Config(tokens=tokens))[0] == pytest.approx(row[tokens])
    assert 1 - deciding(sums, Config(pooling="texts"))[0] == pytest.approx(row["text_mean"])


def test_a_massive_token_in_the_middle_is_a_sink_and_not_a_first_token():
    """Against norms by hand: beyond ten medians of its text, or first."""
    hf = planted()
    with torch.no_grad():
        hf.model.embed_tokens.weight[1] *= 3000
    texts = texts_of(40, (9, 8, 7, 9, 6))
    texts = HalfTexts([[*ids[:4], 1, *ids[5:]] for ids in texts.ids], texts.rows, texts.own)
    model = wrap(hf)
    frame, _, _ = table_of(model, texts, kinds=("mlp",))
    each = [(cosines(hf, model, ids)["mlp", 0], states(hf, model, ids)) for ids in texts.ids]
    kept = []
    for cos, seen in each:
        norms = (seen["x", 0] + seen["attention", 0]).norm(dim=-1).numpy()
        ordinary = norms <= 10 * np.median(norms)
        ordinary[0] = False
        assert not ordinary[4] and ordinary.sum() == len(cos) - 2
        kept.append(cos[ordinary])
    row = frame.row(0, named=True)
    assert row["without_sinks"] == pytest.approx(np.concatenate(kept).mean(), abs=2e-6)
    assert row["without_first"] == pytest.approx(np.concatenate([cos[1:] for cos, _ in each]).mean(), abs=2e-6)
    assert 1 - row["without_sinks"] > 1.1 * (1 - row["without_first"])


def test_long_texts_weigh_more_where_tokens_are_pooled_and_not_where_texts_are():
    sums = np.zeros((1, 2, len(SUMS)))
    sums[0, :, SUMS.index("tokens")] = [10, 90]
    sums[0, :, SUMS.index("importance")] = [10 * 0.4, 90 * 0.2]
    assert deciding(sums, Config())[0] == pytest.approx(0.22)
    assert deciding(sums, Config(pooling="texts"))[0] == pytest.approx(0.3)


def test_below_five_texts_there_is_no_interval():
    low, high = ratio_interval(np.ones((2, 4)), np.full((2, 4), 3.0))
    assert np.isnan(low).all() and np.isnan(high).all()


def test_cosines_are_float32_whatever_the_weights_and_exact_at_the_ends():
    x = torch.randn(1, 50, 64, generator=torch.Generator().manual_seed(0))
    near = turned(x.bfloat16(), (x.bfloat16() * 1.001).bfloat16())
    exact = torch.nn.functional.cosine_similarity(
        x.bfloat16().double(), (x.bfloat16() * 1.001).bfloat16().double(), dim=-1
    )
    assert near.importance.dtype == torch.float32
    assert torch.allclose(1 - exact, near.importance.double(), rtol=1e-3, atol=1e-9)
    assert not turned(x, x).importance.any() and torch.equal(turned(x, -x).importance, torch.full((1, 50), 2.0))
    zero = torch.zeros(1, 3, 8)
    assert turned(zero, zero).importance.tolist() == [[0, 0, 0]]
    assert turned(zero, zero + 1).importance.tolist() == [[1, 1, 1]]
    assert turned(zero + 1, zero).importance.tolist() == [[1, 1, 1]]
    huge = torch.full((1, 1, 8), 3e17)
    assert float(turned(huge, huge * 2).importance) == 0 and float(turned(huge, huge * 2).scale) == 2


def test_a_model_in_bfloat16_is_measured_in_float32():
    """Cosines of its own states of bfloat16, by hand in float64; never rounded to bfloat16's steps of 1/256."""
    model = wrap(build("llama").bfloat16(), name="llama")
    texts = texts_of(64)
    frame, _, _ = table_of(model, texts, kinds=("block",))
    seen = [states(model.hf, model, ids) for ids in texts.ids]
    for layer in range(3):
        cos = torch.cat([torch.nn.functional.cosine_similarity(s["x", layer], s["y", layer], dim=-1) for s in seen])
        assert abs(frame["similarity"][layer] - float(cos.mean())) < 5e-3  # other batches round otherwise in few bits
    alone = HalfTexts(texts.ids[:1], [0], texts.own[:1])
    (one,) = [table_of(model, alone, kinds=("block",))[0]["similarity"][0]]
    cos = torch.nn.functional.cosine_similarity(seen[0]["x", 0], seen[0]["y", 0], dim=-1)
    assert abs(one - float(cos.mean())) < 1e-6


def test_what_turns_more_than_it_rescales_is_not_flagged():
    found = rescales(np.array([0.0, 0.0, 0.5, 0.01, 0.0]), np.array([1.05, 1.2, 1.2, 0.5, 1.0]))
    assert found.tolist() == [False, True, False, True, False]


def test_a_batch_gives_the_sums_of_single_texts(models):
    for name in ("llama", "gemma2", "gpt_neox"):
        model, texts = models(name), texts_of(64)
        pairs = [pair_of(model, kind, 1) for kind in KINDS]
        together, alone = (
            measure(model, texts, pairs, run=pass_of(model, size, Context()), context=Context(), label="")
            for size in (1000, 1)
        )
        np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in PARTLY if n in ("granite", "bloom")])
def test_sub_layers_that_do_more_than_add_are_refused_and_blocks_are_not(name):
    model = wrap(build(name), name=name)
    with pytest.raises(InputError, match="does not fit the similarity of attention 0"):
        pair_of(model, "attention", 0)
    frame, _, _ = table_of(model, texts_of(64), kinds=("block",))
    seen = [states(model.hf, model, ids) for ids in texts_of(64).ids]
    cos = torch.cat([torch.nn.functional.cosine_similarity(s["x", 1], s["y", 1], dim=-1) for s in seen])
    assert abs(frame["similarity"][1] - float(cos.mean())) < 2e-6


def test_a_stream_that_is_not_finite_fails_and_says_where(models):
    hf = planted()
    model = wrap(hf)
    with torch.no_grad():
        hf.model.layers[3].mlp.down_proj.weight[0, 0] = float("inf")
    with pytest.raises(RunFailed, match="NaN or infinite"):
        table_of(model, texts_of(40))


def test_a_token_without_a_stream_has_a_cosine_and_no_change():
    """A row of the embeddings that is zero, as padding_idx leaves it: its module adds all that there is."""
    hf = planted()
    model, texts = wrap(hf), texts_of(40)
    alone = HalfTexts([row[:-1] for row in texts.ids], texts.rows, [(0, len(row) - 1) for row in texts.ids])
    with torch.no_grad():
        hf.get_input_embeddings().weight[39] = 0
    ended = HalfTexts([[*row[:-1], 39] for row in texts.ids], texts.rows, texts.own)
    with_it, without = (table_of(model, some)[0].filter(component="attention", layer=0) for some in (ended, alone))
    assert 39 not in {token for row in alone.ids for token in row}
    for column in ("norm_change", "scale"):
        assert with_it[column][0] == pytest.approx(without[column][0], rel=1e-5)
    tokens = sum(map(len, ended.ids))
    assert with_it["tokens"][0] == tokens and with_it["importance"][0] > without["importance"][0]


def test_nothing_of_the_stream_is_kept_but_what_a_module_still_has_to_be_compared_with(models, monkeypatch):
    """However many layers and tokens there are, at most two states are held beside the one at hand."""
    from probes.layer_redundancy import stream_pairs

    model, most = wrap(planted(layers=9)), []
    plain = stream_pairs.reading

    def counting(model, wanted, batch, note):
        held = next(
            cell.cell_contents
            for cell in note.__closure__
            if isinstance(cell.cell_contents, dict) and not any(isinstance(key, int) for key in cell.cell_contents)
        )

        def told(site, x):
            note(site, x)
            most.append(len(held))

        return plain(model, wanted, batch, told)

    monkeypatch.setattr(stream_pairs, "reading", counting)
    table_of(model, texts_of(40))
    assert max(most) == 2

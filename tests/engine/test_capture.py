"""Captured activations against plain eager Hugging Face, one prompt at a time."""

from dataclasses import replace

import pytest
import torch

from tests.support.architectures import NAMES, NO_INTERFACE, build
from workbench.core.errors import InputError
from workbench.engine.capture import capture, logits
from workbench.engine.edits import Patch, apply
from workbench.engine.generate import capture_generation
from workbench.engine.hf import stream
from workbench.engine.passes import Pass
from workbench.engine.stored_capture import Request
from workbench.models.attention import observe
from workbench.models.batching import batches, pad
from workbench.models.loading import load, wrap
from workbench.models.running_pass import PassPositions, in_progress
from workbench.models.sites import Site, sites
from workbench.store.activation_store import Store

IDS = [[1, 5, 9, 2, 40, 41, 7, 33, 12, 50], [3, 4, 5, 6, 7, 8, 9, 10, 11], [2, 9], [17]]


def plain(hf, ids):
    """What Hugging Face itself returns, eager, one prompt at a time: the reference of every test here."""
    with torch.no_grad():
        return [
            hf(torch.tensor([row]), output_hidden_states=True, output_attentions=True, use_cache=False) for row in ids
        ]


def reference_heads(hf, model, ids, layer):
    """The input of the output projection, heard by a hook of the test's own."""
    heard = []
    handle = model.o_proj(layer).register_forward_pre_hook(lambda _m, args: heard.append(args[0].detach().clone()))
    try:
        plain(hf, ids)
    finally:
        handle.remove()
    return [h.reshape(-1, model.n_heads, model.d_head) for h in heard]


@pytest.fixture(scope="module", params=NAMES)
def fitted(request):
    """(plain eager outputs, the same model wrapped)"""
    reference = plain(build(request.param), IDS)
    return request.param, reference, wrap(build(request.param), name=request.param)


def test_residuals_norm_and_logits_equal_hugging_face(fitted):
    _, reference, model = fitted
    acts = capture(
        model,
        IDS,
        [*sites("resid_pre", range(3)), *sites("resid_post", range(3)), "final_norm", "logits"],
        positions="all",
    )
    for i, out in enumerate(reference):
        for layer in range(3):
            torch.testing.assert_close(
                acts.rows(f"resid_pre.{layer}", i), out.hidden_states[layer][0], atol=1e-5, rtol=0
            )
        for layer in range(2):
            torch.testing.assert_close(
                acts.rows(f"resid_post.{layer}", i), out.hidden_states[layer + 1][0], atol=1e-5, rtol=0
            )
        torch.testing.assert_close(acts.rows("final_norm", i), out.hidden_states[-1][0], atol=1e-5, rtol=0)
        torch.testing.assert_close(acts.rows("logits", i), out.logits[0], atol=1e-5, rtol=0)


def test_head_outputs_are_attention_rows_times_values(fitted):
    """head_out of every query head = eager attention row @ values, with the query head's own key/value group."""
    name, reference, model = fitted
    acts = capture(model, IDS, sites("head_out", range(3)), positions="all")
    hf = build(name)
    twin = wrap(build(name), name=name)
    for layer in range(3):
        heard = reference_heads(hf, twin_modules(hf, twin, model), IDS, layer)
        for i in range(len(IDS)):
            torch.testing.assert_close(acts.rows(f"head_out.{layer}", i), heard[i], atol=1e-5, rtol=0)
            one = capture(model, [IDS[i]], [f"head_out.{layer}.3"])[f"head_out.{layer}.3"]
            torch.testing.assert_close(one[0], heard[i][-1, 3], atol=1e-5, rtol=0)


def twin_modules(hf, twin, model):
    """The same anatomy over a model that still runs plain eager attention."""
    from workbench.models.architecture import find_anatomy

    parts = find_anatomy(hf)

    class Modules:
        n_heads, d_head = model.n_heads, model.d_head

        @staticmethod
        def o_proj(layer):
            return parts.blocks[layer].o_proj

    return Modules


def test_heads_and_mlp_add_up_to_the_residual_stream(fitted):
    name, _, model = fitted
    kinds = ["resid_pre", "attn_out", "mlp_out", "resid_post"] + (
        [] if model.anatomy.parallel_blocks else ["resid_mid"]
    )
    acts = capture(model, IDS, [Site(kind, 1) for kind in kinds], positions="all")
    total = acts["resid_pre.1"] + acts["attn_out.1"] + acts["mlp_out.1"]
    torch.testing.assert_close(total, acts["resid_post.1"], atol=1e-5, rtol=1e-5)
    if model.anatomy.parallel_blocks:
        with pytest.raises(InputError, match="read the same stream"):
            capture(model, IDS, ["resid_mid.1"])
    else:
        torch.testing.assert_close(acts["resid_pre.1"] + acts["attn_out.1"], acts["resid_mid.1"], atol=1e-5, rtol=1e-5)


def test_architecture_facts_are_read_off_the_model(fitted):
    name, _, model = fitted
    assert model.anatomy.parallel_blocks == (name in ("gpt_neox", "falcon", "gptj"))
    assert model.anatomy.post_norms == (name in ("gemma2", "gemma3_text", "olmo2"))
    assert model.anatomy.experts == (name == "mixtral")
    assert model.attention_interface == (name not in NO_INTERFACE)
    assert model.n_kv_heads == {"gpt2": 4, "gpt_neox": 4, "opt": 4, "gptj": 4, "falcon": 1}.get(name, 2)
    assert [model.kv_group(h) for h in range(4)] == {4: [0, 1, 2, 3], 2: [0, 0, 1, 1], 1: [0, 0, 0, 0]}[
        model.n_kv_heads
    ]


@pytest.mark.parametrize("side", ["left", "right"])
def test_attention_rows_equal_eager_on_either_side_of_the_padding(fitted, side):
    _, reference, model = fitted
    batch = pad(IDS, pad_id=0, side=side)
    with torch.no_grad(), observe(model, lambda _layer, rows: rows.clone(), rows="last") as seen:
        model.forward(batch)
    assert set(seen) == {0, 1, 2}
    for layer, rows in seen.items():
        torch.testing.assert_close(rows.sum(-1), torch.ones(4, 4, 1), atol=1e-5, rtol=0)
        for i, out in enumerate(reference):
            n = len(IDS[i])
            own = rows[i, :, 0, -n:] if side == "left" else rows[i, :, 0, :n]
            torch.testing.assert_close(own, out.attentions[layer][0, :, -1], atol=1e-5, rtol=0)


def test_every_attention_row_can_be_read(fitted):
    _, reference, model = fitted
    with torch.no_grad(), observe(model, lambda _layer, rows: rows.clone(), rows="all", layers=[1]) as seen:
        model.forward(pad(IDS[:1], pad_id=0))
    torch.testing.assert_close(seen[1][0], reference[0].attentions[1][0], atol=1e-5, rtol=0)


def test_batch_equals_single_and_left_equals_right(fitted):
    _, reference, model = fitted
    wanted = ["resid_post.2", "head_out.1", "logits"]
    alone = [capture(model, [row], wanted) for row in IDS]
    for side in ("left", "right"):
        together = capture(model, IDS, wanted, side=side)
        for site in wanted:
            torch.testing.assert_close(together[site], torch.cat([a[site] for a in alone]), atol=1e-5, rtol=0)
    torch.testing.assert_close(logits(model, IDS), torch.stack([o.logits[0, -1] for o in reference]), atol=1e-5, rtol=0)


def test_positions_choose_tokens(tiny_llama):
    model = load(str(tiny_llama))
    ids = [model.encode(t) for t in ("Once upon a time", "The cat sat on the mat and slept", "One day")]
    every = capture(model, ids, ["resid_post.2"], positions="all")
    mean = capture(model, ids, ["resid_post.2"], positions="mean")["resid_post.2"]
    last = capture(model, ids, ["resid_post.2"])["resid_post.2"]
    chosen = capture(model, ids, ["resid_post.2"], positions=[0, -2])["resid_post.2"]
    own = capture(model, ids, ["resid_post.2"], positions=[[1], [3], [2]])["resid_post.2"]
    for i in range(3):
        rows = every.rows("resid_post.2", i)
        assert rows.shape == (len(ids[i]), model.width)
        torch.testing.assert_close(mean[i], rows.mean(0), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(last[i], rows[-1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(chosen[i], rows[[0, -2]], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(own[i, 0], rows[[1, 3, 2][i]], atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match="Position 9 is not among"):
        capture(model, ids, ["resid_post.2"], positions=[9])


def test_the_pass_ends_after_the_deepest_site(tiny_llama):
    model = load(str(tiny_llama))
    ran = []
    handles = [
        block.block.register_forward_hook(lambda *_a, k=k: ran.append(k))
        for k, block in enumerate(model.anatomy.blocks)
    ]
    capture(model, [[1, 2, 3]], ["resid_post.1"])
    for handle in handles:
        handle.remove()
    assert ran == [0, 1]


def hooks_on(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules())


def test_the_last_mlp_runs_on_the_tokens_that_are_read_alone(fitted):
    """Unless something of it is wanted, or somebody hooked it: an edit there sees every token."""
    name, reference, model = fitted
    mlp, last, seen = model.anatomy.blocks[-1].mlp_in, model.n_layers - 1, []
    if mlp is not model.anatomy.blocks[-1].mlp_out:
        mlp = model.anatomy.blocks[-1].block  # read and written through different modules: left as it is
    wanted = [Site("resid_post", 0), Site("final_norm"), Site("logits")]
    real = mlp.forward
    mlp.forward = lambda x, *args, **kwargs: seen.append(x.shape[:2]) or real(x, *args, **kwargs)
    try:
        for side in ("right", "left"):
            (indices, found, _), *_ = stream(model, IDS, wanted, side=side, max_rows=4)
            for k, i in enumerate(indices):
                torch.testing.assert_close(
                    found[Site("final_norm")][k], reference[i].hidden_states[-1][0, -1], atol=1e-5, rtol=0
                )
                torch.testing.assert_close(found[Site("logits")][k], reference[i].logits[0, -1], atol=1e-5, rtol=0)
                torch.testing.assert_close(
                    found[Site("resid_post", 0)][k], reference[i].hidden_states[1][0, -1], atol=1e-5, rtol=0
                )
        whole = mlp is model.anatomy.blocks[-1].block
        assert set(seen) == {(4, 10) if whole else (4, 1)}
        seen.clear()
        inner = capture(model, IDS, [Site("mlp_out", last), Site("final_norm")])
        beyond = model.module(Site("mlp_out", last))[0] not in set(
            mlp.modules()
        )  # a norm after it writes to the stream
        assert set(seen) == {(4, 1) if beyond else (4, 10)}
        every = capture(model, IDS, [Site("mlp_out", last)], positions="all")
        ends = torch.stack([every.rows(Site("mlp_out", last), i)[-1] for i in range(len(IDS))])
        torch.testing.assert_close(inner[Site("mlp_out", last)], ends, atol=1e-5, rtol=0)
    finally:
        del mlp.forward
    with apply(model, [Patch(Site("mlp_out", last), torch.ones(model.width))]):
        alone = capture(model, IDS, ["final_norm"])["final_norm"]
        every = capture(model, IDS, ["final_norm"], positions="all")
    torch.testing.assert_close(
        alone, torch.stack([every.rows("final_norm", i)[-1] for i in range(len(IDS))]), atol=1e-5, rtol=0
    )
    assert not torch.allclose(alone, capture(model, IDS, ["final_norm"])["final_norm"])


def test_the_middle_of_the_last_layer_is_read_on_every_token_where_the_mlp_reads_it(fitted):
    """In OLMo-2 the module that reads it is the MLP itself."""
    _, _, model = fitted
    site = Site("resid_mid", model.n_layers - 1)
    try:
        every = capture(model, IDS, [site], positions="all")
    except InputError as error:
        assert "attention and MLP read the same stream" in str(error)  # parallel blocks have no middle
        return
    torch.testing.assert_close(
        capture(model, IDS, [site])[site],
        torch.stack([every.rows(site, i)[-1] for i in range(len(IDS))]),
        atol=1e-5,
        rtol=0,
    )


def test_experts_that_flatten_tokens_are_narrowed_too():
    from transformers import Llama4ForCausalLM, Llama4TextConfig

    torch.manual_seed(0)
    config = Llama4TextConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=48,
        intermediate_size_mlp=48,
        num_local_experts=2,
        interleave_moe_layer_step=1,
        vocab_size=64,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model, wanted = wrap(Llama4ForCausalLM(config).eval(), name="llama4"), ["resid_post.1", "final_norm"]
    for rows in (IDS[:1], IDS):
        last, every = capture(model, rows, wanted), capture(model, rows, wanted, positions="all")
        for site in wanted:
            torch.testing.assert_close(
                last[site], torch.stack([every.rows(site, i)[-1] for i in range(len(rows))]), atol=1e-5, rtol=0
            )


def test_no_hook_outlives_a_capture_even_when_it_fails(tiny_llama):
    model = load(str(tiny_llama))
    before = hooks_on(model)
    for _ in range(20):
        capture(model, [[1, 2, 3]], ["resid_post.1", "head_out.2"])
    with pytest.raises(InputError):
        capture(model, [[1, 2, 3]], ["resid_post.1"], positions=[7])
    assert hooks_on(model) == before and not in_progress()


def test_out_of_memory_halves_the_batch_and_goes_on(tiny_llama, monkeypatch):
    model = load(str(tiny_llama))
    ids = [[1, 2 + i, 3] for i in range(9)]
    wanted = capture(model, ids, ["resid_post.3"])["resid_post.3"]
    real, sizes = type(model).forward, []

    def short_of_memory(self, batch, **kwargs):
        sizes.append(len(batch.ids))
        if len(batch.ids) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return real(self, batch, **kwargs)

    monkeypatch.setattr(type(model), "forward", short_of_memory)
    found = capture(model, ids, ["resid_post.3"])["resid_post.3"]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert sizes[0] == 9 and max(sizes[-2:]) <= 2


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_at_no_position(side):
    batch = pad([[5, 6, 7], [8]], pad_id=0, side=side)
    frame = PassPositions(batch.position_ids, batch.mask, batch.position_ids.masked_fill(~batch.mask, -1))
    first = [[1, 0, 0], [0, 0, 1]] if side == "left" else [[1, 0, 0], [1, 0, 0]]
    assert frame.at(torch.tensor([[0], [0]])).int().tolist() == first
    assert frame.at(torch.tensor([[-1], [1]])).int().tolist() == [[0, 0, 0], [0, 0, 0]]
    assert frame.key_columns(torch.tensor([[0], [0]]), 3).int().tolist() == first


def test_batches_cover_every_row_once_within_the_budget():
    lengths = [5, 1, 9, 9, 2, 30, 4]
    plan = batches(lengths, max_tokens=20, max_rows=3)
    assert sorted(i for rows in plan for i in rows) == list(range(7))
    assert all(len(rows) == 1 or max(lengths[i] for i in rows) * len(rows) <= 20 for rows in plan)


def test_a_stored_capture_is_computed_once(tiny_llama, tmp_path):
    model, store = load(str(tiny_llama)), Store(tmp_path / "store")
    ids = [[1, 2 + i, 3, 4 + i % 5] for i in range(40)]
    kinds = ["resid_post.1", "head_out.0"]
    fresh = capture(model, ids, kinds, positions="all")
    stored = capture(model, ids, kinds, positions="all", store=store)
    model.hf.forward = None  # a second run must not need the model at all
    again = capture(model, ids, kinds, positions="all", store=store)
    for site in kinds:
        torch.testing.assert_close(stored[site], fresh[site], atol=0, rtol=0)
        torch.testing.assert_close(again[site], fresh[site], atol=0, rtol=0)


def test_the_store_key_changes_with_what_is_computed(tiny_llama):
    from workbench.engine.edits import HeadAblation

    model = load(str(tiny_llama))
    base = Request(model, [[1, 2, 3]], [Site.parse("resid_post.1")])
    changed = [
        replace(base, ids=[[1, 2, 4]]),
        replace(base, sites=[Site.parse("resid_post.2")]),
        replace(base, positions="mean"),
        replace(base, run=Pass(edits=[HeadAblation(((0, 1),))])),
        replace(base, run=Pass(edits=[HeadAblation(((0, 2),))])),
        replace(base, dtype=torch.float16),
        replace(base, side="left"),
        replace(base, engine="nnsight"),
    ]
    keys = [request.key() for request in [base, *changed]]
    assert len(set(keys)) == len(keys)
    assert replace(base).key() == keys[0]
    # how the pass is batched or watched is none of what a capture is
    assert replace(base, run=Pass(max_rows=1, max_tokens=7, check=lambda: None)).key() == keys[0]
    # the same file read in another precision gives other numbers
    assert replace(base, model=load(str(tiny_llama), dtype="bfloat16")).key() not in keys


def test_predicted_bytes_are_the_bytes_captured(fitted):
    _, _, model = fitted
    kinds = ["resid_post.0", "head_out.1", "head_out.1.2", "mlp_in.0", "logits"] + (
        [] if model.anatomy.experts else ["mlp_hidden.2"]
    )
    for positions in ("last", "all", [0]):
        acts = capture(model, IDS, kinds, positions=positions, dtype=torch.float16)
        request = Request(model, IDS, [Site.parse(kind) for kind in kinds], positions, torch.float16)
        assert sum(acts[s].numel() * 2 for s in kinds) == request.predicted_bytes()
    assert model.site_size(Site("resid_pre", 0)) == 32


@pytest.mark.parametrize(
    "ids, says",
    [
        ([], "no prompts"),
        ([[1], []], "Prompt 2 has no tokens"),
        ([[1] * 600], "more than the model's context of 512"),
        ([[1, 99999]], "outside the model's vocabulary"),
    ],
)
def test_bad_prompts_are_refused(tiny_llama, ids, says):
    with pytest.raises(InputError, match=says):
        list(stream(load(str(tiny_llama)), ids, ["resid_post.0"]))


def test_sites_beyond_the_model_are_refused(tiny_llama):
    model = load(str(tiny_llama))
    for site, says in [("resid_post.5", "layers are 0 to 4"), ("head_out.0.8", "heads are 0 to 7")]:
        with pytest.raises(InputError, match=says):
            capture(model, [[1]], [site])
    wrapped = wrap(build("mixtral"))
    with pytest.raises(InputError, match="mixture of experts"):
        capture(wrapped, [[1]], ["mlp_hidden.0"])


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mixtral"])
def test_activations_during_generation_are_those_of_each_step(name):
    """Against Hugging Face `generate` with its own key/value cache, hooks listening at every step."""
    model, hf = wrap(build(name), name=name), build(name)
    from workbench.models.architecture import find_anatomy

    wanted = ["resid_post.1", "head_out.2", "logits"]
    generated, acts = capture_generation(model, IDS, wanted, max_new_tokens=6, eos=False)
    parts, hf.generation_config.eos_token_id = find_anatomy(hf), None
    for i, prompt in enumerate(IDS):
        heard = {"resid_post.1": [], "head_out.2": []}
        handles = [
            parts.blocks[1].block.register_forward_hook(
                lambda _m, _a, out, heard=heard: heard["resid_post.1"].append(
                    (out if isinstance(out, torch.Tensor) else out[0])[0, -1]
                )
            ),
            parts.blocks[2].o_proj.register_forward_pre_hook(
                lambda _m, args, heard=heard: heard["head_out.2"].append(args[0].reshape(-1, 32)[-1])
            ),
        ]
        with torch.no_grad():
            out = hf.generate(
                torch.tensor([prompt]),
                max_new_tokens=6,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        for handle in handles:
            handle.remove()
        assert generated[i] == out.sequences[0, len(prompt) :].tolist()
        for site in ("resid_post.1", "head_out.2"):
            found = acts[i][Site.parse(site)]
            torch.testing.assert_close(found.reshape(6, -1), torch.stack(heard[site]), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            acts[i][Site("logits")], torch.stack([x[0].float() for x in out.logits]), atol=1e-4, rtol=1e-4
        )

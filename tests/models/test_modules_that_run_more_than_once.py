"""A module that runs more than once in a pass: the call that is meant is read and edited, or it is refused; never
another."""

import pytest
import torch

from tests.support.architectures import build, normed_embeddings
from workbench.core.errors import InputError, RunFailed
from workbench.engine.capture import capture, logits
from workbench.engine.edits import HeadAblation, KnockOut, Patch, ProjectOut, apply
from workbench.engine.evaluation import token_losses
from workbench.engine.generate import capture_generation, greedy, sample
from workbench.engine.kv_cache import prefill
from workbench.engine.patching import activation_patching, attribution, direct_effects, total_effects
from workbench.engine.scoring import score
from workbench.models.attention import observe
from workbench.models.batching import pad
from workbench.models.loading import wrap
from workbench.models.sites import Site

IDS = [[1, 5, 9, 2, 40, 41, 7], [3, 4, 5, 6], [17, 20, 21, 22, 30]]
DONORS = [[1, 5, 9, 8, 40, 44, 3], [3, 9, 5, 7], [17, 20, 33, 22, 31]]
TOKENS = [[3, 4], [5, 6], [7, 8]]
FINAL = Site("final_norm")


@pytest.fixture(scope="module")
def model():
    return wrap(normed_embeddings(), name="normed")


def last_norm(hf, ids, change=None) -> tuple[torch.Tensor, torch.Tensor]:
    """(states behind the norm before the unembedding [T, width], logits [T, V]) of plain Hugging Face; `change`: what
    is done to these states."""
    heard = []

    def hook(_module, args):
        heard.append(args[0][0] if change is None else change(args[0])[0])
        return None if change is None else (change(args[0]),)

    handle = hf.lm_head.register_forward_pre_hook(hook)
    with torch.no_grad():
        found = hf(torch.tensor([ids]), use_cache=False).logits[0]
    handle.remove()
    return heard[0], found


@pytest.mark.parametrize("positions", ["last", "all"])
def test_the_final_norm_is_its_call_before_the_unembedding(model, positions):
    hf = normed_embeddings()
    sites = ["final_norm", "logits", "resid_pre.0", "resid_post.2"]
    found = capture(model, IDS, sites, positions=positions)
    for i, ids in enumerate(IDS):
        states, scores = last_norm(hf, ids)
        wanted = (states, scores) if positions == "all" else (states[-1], scores[-1])
        for site, right in zip(sites, wanted):
            mine = found.rows(site, i) if positions == "all" else found[site][i]
            torch.testing.assert_close(mine, right, atol=1e-5, rtol=1e-4)
    alone = capture(model, IDS, ["final_norm"], positions=positions)["final_norm"]  # the pass ends at the right call
    torch.testing.assert_close(alone, found["final_norm"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.logits_from(found["resid_post.2"]), found["logits"], atol=1e-4, rtol=1e-4)


def test_edits_of_the_final_norm_leave_its_other_calls_alone(model):
    hf, direction = normed_embeddings(), torch.randn(32, generator=torch.Generator().manual_seed(3))
    unit = direction / direction.norm()

    def removed(x):
        return x - (x @ unit)[..., None] * unit

    def put(x):
        return direction.expand_as(x)

    for edit, change in ((ProjectOut(FINAL, direction), removed), (Patch(FINAL, direction), put)):
        found = logits(model, IDS, edits=[edit])
        for i, ids in enumerate(IDS):
            torch.testing.assert_close(found[i], last_norm(hf, ids, change)[1][-1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("phase", ["all", "decode"])
def test_edits_of_the_final_norm_act_on_every_step_of_a_generation(model, phase):
    hf, direction = normed_embeddings(), torch.randn(32, generator=torch.Generator().manual_seed(3))
    unit = direction / direction.norm()
    found = greedy(model, IDS, max_new_tokens=4, edits=[ProjectOut(FINAL, direction)], eos=False, edit_phase=phase)
    for i, ids in enumerate(IDS):
        text = list(ids)
        for _ in range(4):
            text.append(int(last_norm(hf, text, lambda x: x - (x @ unit)[..., None] * unit)[1][-1].argmax()))
        assert found[i] == text[len(ids) :]


def test_everything_that_reads_scores_reads_them_after_the_right_call(model):
    hf = normed_embeddings()
    losses = token_losses(model, IDS)
    drawn = sample(model, IDS, samples=1, max_new_tokens=3, eos=False)
    again = score(model, IDS, [drawn.tokens(p, 0) for p in range(len(IDS))])
    torch.testing.assert_close(torch.stack(again), drawn.steps[:, 0], atol=1e-4, rtol=1e-3)
    generated, acts = capture_generation(model, IDS, ["final_norm"], max_new_tokens=3, eos=False)
    for i, ids in enumerate(IDS):
        log_p = last_norm(hf, ids)[1].log_softmax(-1)
        right = [-float(log_p[t, token]) for t, token in enumerate(ids[1:])]
        assert losses[i].tolist() == pytest.approx(right, abs=1e-4)
        whole = last_norm(hf, [*ids, *generated[i][:-1]])[0][len(ids) - 1 :]
        torch.testing.assert_close(acts[i][FINAL], whole, atol=1e-4, rtol=1e-4)


def test_shared_beginnings_are_read_as_plain_prompts(model):
    rows = [[1, 5, 9, 2, 40, 41, 7, 11, 12, 13 + k % 3, 20 + k] for k in range(24)]
    together = capture(model, rows, ["final_norm", "logits"])
    for i, ids in enumerate(rows[:4]):
        states, scores = last_norm(normed_embeddings(), ids)
        torch.testing.assert_close(together["final_norm"][i], states[-1], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(together["logits"][i], scores[-1], atol=1e-4, rtol=1e-4)


def test_effects_of_heads_are_those_of_whole_passes(model):
    heads = [(0, 1), (2, 3)]
    z = capture(model, DONORS, ["head_out.0", "head_out.2"])
    total, slopes = total_effects(model, IDS, DONORS, TOKENS, heads=heads), attribution(model, IDS, DONORS, TOKENS)
    for i, ids in enumerate(IDS):
        for k, (layer, head) in enumerate(heads):
            put = Patch(Site("head_out", layer, head), z[f"head_out.{layer}"][i, head], (-1,))
            slow = logits(model, [ids], edits=[put])[0].log_softmax(-1) - logits(model, [ids])[0].log_softmax(-1)
            torch.testing.assert_close(total.change()[i, k], slow[TOKENS[i]], atol=1e-4, rtol=1e-3)
            small = Patch(
                put.site, (z[f"head_out.{layer}"][i, head] - 0) * 1e-2 + 0.99 * _z(model, ids, layer, head), (-1,)
            )
            slope = logits(model, [ids], edits=[small])[0].log_softmax(-1) - logits(model, [ids])[0].log_softmax(-1)
            torch.testing.assert_close(
                slopes[i, layer * model.n_heads + head], 100 * slope[TOKENS[i]], atol=5e-2, rtol=0.1
            )
    patched = activation_patching(model, IDS[:1], DONORS[:1], TOKENS[:1], "mlp_out", positions=[-1])
    donor = capture(model, DONORS[:1], ["mlp_out.1"])["mlp_out.1"]
    slow = logits(model, IDS[:1], edits=[Patch(Site("mlp_out", 1), donor, (-1,))])[0, TOKENS[0]]
    torch.testing.assert_close(patched.patched_logits[0, 1], slow, atol=1e-4, rtol=1e-4)


def _z(model, ids, layer: int, head: int) -> torch.Tensor:
    return capture(model, [ids], [f"head_out.{layer}"])[f"head_out.{layer}"][0, head]


def test_nnsight_says_that_it_reads_the_first_call_only(model):
    pytest.importorskip("nnsight")
    with pytest.raises(InputError, match="runs 2 times in a pass; use --engine hf"):
        capture(model, IDS, ["final_norm"], engine="nnsight")


def test_a_final_norm_that_runs_otherwise_in_a_decoding_step_is_refused_and_scores_are_not():
    """Whole texts go through the norm at both ends, single tokens at the last only."""
    model, hf = wrap(normed_embeddings(once=True)), normed_embeddings(once=True)
    says = "final norm runs 2 times in a plain pass, 2 times with a key/value cache and 1 times in a decoding step"
    for use in (
        lambda: capture(model, IDS, ["final_norm"]),
        lambda: logits(model, IDS, edits=[Patch(FINAL, torch.ones(32))]),
        lambda: greedy(model, IDS, max_new_tokens=2, edits=[ProjectOut(FINAL, torch.ones(32))]),
    ):
        with pytest.raises(InputError, match=says):
            use()
    found = logits(model, IDS)
    for i, ids in enumerate(IDS):
        torch.testing.assert_close(found[i], last_norm(hf, ids)[1][-1], atol=1e-5, rtol=1e-4)


def test_a_pass_with_more_calls_than_at_loading_is_no_number(model):
    """Somebody changed the model after it was loaded."""
    block = model.anatomy.blocks[1].block
    handle = block.register_forward_pre_hook(lambda _m, args: (model.final_norm(args[0]), *args[1:]))
    try:
        for use in (
            lambda: capture(model, IDS, ["resid_post.2", "final_norm"], positions="all"),
            lambda: logits(model, IDS, edits=[ProjectOut(FINAL, torch.ones(32))]),
            lambda: score(model, IDS, TOKENS),
        ):
            with pytest.raises(RunFailed, match="ran 3 times in a pass, and 2 times when the model was loaded"):
                use()
    finally:
        handle.remove()


# modules that layers share


def shared_block():
    hf = build("llama")
    hf.model.layers[2] = hf.model.layers[1]
    return hf


def shared_mlp():
    hf = build("llama")
    hf.model.layers[2].mlp = hf.model.layers[1].mlp
    return hf


def shared_attention():
    hf = build("llama")
    hf.model.layers[2].self_attn = hf.model.layers[1].self_attn
    return hf


def shared_norm():
    hf = build("llama")
    for layer in hf.model.layers:
        layer.post_attention_layernorm = layer.input_layernorm
    return hf


def one_norm():
    """The final norm is every norm of the model."""
    hf = build("llama")
    for layer in hf.model.layers:
        layer.post_attention_layernorm = layer.input_layernorm = hf.model.norm
    return hf


def looped():
    """Every block goes through its parts twice: recurrent depth inside a block."""
    hf = build("llama")
    kind = type(hf.model.layers[0])

    class Twice(kind):
        def forward(self, hidden_states, *args, **kwargs):
            return super().forward(super().forward(hidden_states, *args, **kwargs), *args, **kwargs)

    for layer in hf.model.layers:
        layer.__class__ = Twice
    return hf


def head_called_twice():
    hf = build("llama")
    kind = type(hf)

    class LlamaForCausalLM(kind):
        def forward(self, *args, **kwargs):
            found = super().forward(*args, **kwargs)
            self.lm_head(torch.zeros(1, 32))
            return found

    hf.__class__ = LlamaForCausalLM
    return hf


MADE = {
    f.__name__: f
    for f in (shared_block, shared_mlp, shared_attention, shared_norm, one_norm, looped, head_called_twice)
}
REFUSED = [
    ("shared_block", lambda m: capture(m, IDS, ["resid_post.1"]), "runs 2 times in a pass"),
    ("shared_block", lambda m: capture(m, IDS, ["head_out.2"]), "runs 2 times in a pass"),
    ("shared_block", lambda m: logits(m, IDS, edits=[HeadAblation(((2, 1),))]), "runs 2 times in a pass"),
    ("shared_block", lambda m: logits(m, IDS, edits=[HeadAblation(((2, 1),), "uniform")]), "runs 2 times in a pass"),
    ("shared_block", lambda m: logits(m, IDS, edits=[KnockOut((1,), ((0,),))]), "runs 2 times in a pass"),
    ("shared_block", lambda m: observe(m, lambda _l, w: w).__enter__(), "runs 2 times in a pass"),
    ("shared_block", lambda m: direct_effects(m, IDS, DONORS, TOKENS), "runs 2 times in a pass"),
    ("shared_block", lambda m: total_effects(m, IDS, DONORS, TOKENS), "runs 2 times in a pass"),
    ("shared_mlp", lambda m: capture(m, IDS, ["mlp_out.1"]), "runs 2 times in a pass"),
    ("shared_mlp", lambda m: capture(m, IDS, ["mlp_hidden.2"]), "runs 2 times in a pass"),
    ("shared_mlp", lambda m: logits(m, IDS, edits=[Patch(Site("mlp_in", 2), torch.ones(32))]), "runs 2 times"),
    ("shared_attention", lambda m: capture(m, IDS, ["attn_out.1"]), "runs 2 times in a pass"),
    ("shared_attention", lambda m: total_effects(m, IDS, DONORS, TOKENS), "runs 2 times in a pass"),
    ("shared_norm", lambda m: capture(m, IDS, ["resid_mid.1"]), "runs 2 times in a pass"),
    ("looped", lambda m: capture(m, IDS, ["attn_out.0"]), "runs 2 times in the block"),
    ("looped", lambda m: capture(m, IDS, ["head_out.0"]), "runs 2 times in a pass"),
    ("looped", lambda m: total_effects(m, IDS, DONORS, TOKENS), "runs 2 times in a pass"),
]


@pytest.fixture(scope="module")
def made():
    built = {}

    def get(name):
        if name not in built:
            built[name] = wrap(MADE[name](), name=name)
        return built[name]

    return get


@pytest.mark.parametrize(("name", "use", "why"), REFUSED)
def test_what_a_shared_module_carries_is_refused_in_one_sentence(made, name, use, why):
    with pytest.raises(InputError, match=f"does not fit .*: .*{why}") as refused:
        use(made(name))
    assert str(refused.value).count(". ") == 0 and str(refused.value).endswith(".")


@pytest.mark.parametrize("name", MADE)
def test_scores_and_what_is_carried_by_one_call_are_the_models_own(made, name):
    model, hf = made(name), MADE[name]()
    found = capture(model, IDS, ["logits", "final_norm"], positions="all")
    for i, ids in enumerate(IDS):
        with torch.no_grad():
            out = hf(torch.tensor([ids]), output_hidden_states=True, use_cache=False)
        torch.testing.assert_close(found.rows("logits", i), out.logits[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.rows("final_norm", i), out.hidden_states[-1][0], atol=1e-4, rtol=1e-4)
    last = capture(model, IDS, ["final_norm", "logits"])  # where the last MLP is narrowed to one token if it may be
    torch.testing.assert_close(last["logits"], torch.stack([found.rows("logits", i)[-1] for i in range(3)]))


@pytest.mark.parametrize("name", ["shared_mlp", "shared_norm", "one_norm", "head_called_twice"])
def test_direct_paths_and_heads_of_blocks_that_run_once_are_as_whole_passes(made, name):
    """Sharing an MLP or a norm takes nothing from the heads."""
    model = made(name)
    total = total_effects(model, IDS, DONORS, TOKENS, heads=[(0, 1), (2, 2)])
    for k, (layer, head) in enumerate([(0, 1), (2, 2)]):
        for i, ids in enumerate(IDS):
            put = Patch(Site("head_out", layer, head), _z(model, DONORS[i], layer, head), (-1,))
            slow = logits(model, [ids], edits=[put])[0, TOKENS[i]]
            torch.testing.assert_close(total.patched_logits[i, k], slow, atol=1e-4, rtol=1e-4)
    direct = direct_effects(model, IDS, DONORS, TOKENS, heads=[(2, 2)])
    assert direct.change().abs().max() > 1e-3


def test_a_mid_stream_of_a_shared_norm_is_edited_though_it_cannot_be_read(made):
    """The edit changes what attention adds, and needs no norm."""
    with pytest.raises(InputError, match="does not fit resid_mid.1: the LlamaRMSNorm that carries it runs 2 times"):
        capture(made("shared_norm"), IDS, ["resid_mid.1"])


def test_a_past_of_looped_blocks_is_that_of_a_whole_pass(made):
    model = made("looped")
    cached = prefill(model, [IDS[0][:-1]], None)
    whole = [keys for layer in cached.cache.layers for keys in (layer.keys, layer.values)]
    assert all(t.shape[-2] > 0 for t in whole)
    with torch.no_grad(), apply(model, []):
        plain = model.forward(pad([IDS[0]], pad_id=0)).logits[0, -1]
    torch.testing.assert_close(plain, logits(model, IDS[:1])[0], atol=1e-5, rtol=1e-5)

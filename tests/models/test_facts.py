"""What a model's forward pass does not do is refused where it is needed, in one sentence, and everything else works."""

import pytest
import torch

from tests.support.architectures import NAMES, PARTLY, build, normed_embeddings
from workbench.core.errors import InputError
from workbench.engine.capture import capture, logits
from workbench.engine.edits import HeadAblation, KnockOut, Patch
from workbench.engine.generate import greedy, sample
from workbench.engine.head_paths import head_to_head
from workbench.engine.mean_head_outputs import mean_head_outputs
from workbench.engine.patching import attribution, direct_effects, direct_mlp_effects, total_effects
from workbench.engine.pruned_export import export_pruned
from workbench.engine.scoring import score
from workbench.explorer import readings
from workbench.models import recording
from workbench.models.architecture import Anatomy
from workbench.models.attention import observe
from workbench.models.batching import pad
from workbench.models.facts import ModelFacts
from workbench.models.loading import wrap
from workbench.models.sites import Site

IDS = [[1, 5, 9, 2, 40, 41, 7], [3, 4, 5, 6], [17, 20, 21, 22, 30]]
DONORS = [[1, 5, 9, 8, 40, 44, 3], [3, 9, 5, 7], [17, 20, 33, 22, 31]]
TOKENS = [[3, 4], [5, 6], [7, 8]]


@pytest.fixture(scope="module")
def models():
    built = {}

    def get(name):
        if name not in built:
            built[name] = wrap(build(name), name=name)
        return built[name]

    return get


@pytest.mark.parametrize("name", NAMES)
def test_every_fact_holds_of_the_architectures_that_are_promised(models, name):
    assert models(name).facts == ModelFacts()


@pytest.mark.parametrize("name", PARTLY)
def test_scores_activations_and_texts_of_a_model_of_which_something_does_not_hold_are_its_own(models, name):
    """Against plain Hugging Face, one prompt at a time."""
    model, hf = models(name), build(name)
    found = logits(model, IDS)
    acts = capture(model, IDS, ["resid_post.1", "final_norm", "logits"], positions="all")
    written = greedy(model, IDS, max_new_tokens=4, eos=False)
    for i, ids in enumerate(IDS):
        with torch.no_grad():
            out = hf(torch.tensor([ids]), output_hidden_states=True, use_cache=False)
        torch.testing.assert_close(found[i], out.logits[0, -1].float(), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(acts.rows("logits", i), out.logits[0].float(), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(acts.rows("resid_post.1", i), out.hidden_states[2][0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(acts.rows("final_norm", i), out.hidden_states[-1][0], atol=1e-4, rtol=1e-4)
        text = list(ids)
        for token in written[i]:
            with torch.no_grad():
                assert token == int(hf(torch.tensor([text]), use_cache=False).logits[0, -1].argmax())
            text.append(token)


@pytest.mark.parametrize("name", PARTLY)
def test_given_texts_are_scored_as_sampled_ones(models, name):
    model = models(name)
    drawn = sample(model, IDS, samples=1, max_new_tokens=3, eos=False)
    again = score(model, IDS, [drawn.tokens(p, 0) for p in range(len(IDS))])
    torch.testing.assert_close(torch.stack(again), drawn.steps[:, 0], atol=2e-4, rtol=1e-3)


MIXED = "heads are mixed before the output projection"
SCALED = "in layer 0 the residual stream is not the sum of its input, attention and MLP"
UNLIKE = "its logits are not the unembedding of its final norm"
SINKS = "its own attention computes more than scores, mask and softmax, for example sinks"
REFUSED = [
    ("bitnet", MIXED, lambda m, _: capture(m, IDS, ["head_out.1"])),
    ("bitnet", MIXED, lambda m, _: capture(m, IDS, ["head_out.1.2"])),
    ("bitnet", MIXED, lambda m, _: logits(m, IDS, edits=[HeadAblation(((1, 2),))])),
    ("bitnet", MIXED, lambda m, _: greedy(m, IDS, max_new_tokens=2, edits=[HeadAblation(((1, 2),))])),
    ("bitnet", MIXED, lambda m, _: logits(m, IDS, edits=[Patch(Site("head_out", 1, 0), torch.ones(8))])),
    ("bitnet", MIXED, lambda m, _: mean_head_outputs(m, IDS)),
    ("bitnet", MIXED, lambda m, _: direct_effects(m, IDS, DONORS, TOKENS)),
    ("bitnet", MIXED, lambda m, _: total_effects(m, IDS, DONORS, TOKENS)),
    ("bitnet", MIXED, lambda m, _: direct_mlp_effects(m, IDS, DONORS, TOKENS)),
    ("bitnet", MIXED, lambda m, _: attribution(m, IDS, DONORS, TOKENS)),
    ("bitnet", MIXED, lambda m, _: head_to_head(m, IDS, DONORS, TOKENS, receiver=(1, 0), through="q")),
    ("bitnet", MIXED, lambda m, folder: export_pruned(m, [(0, 1)], folder)),
    ("granite", SCALED, lambda m, _: direct_effects(m, IDS, DONORS, TOKENS)),
    ("granite", SCALED, lambda m, _: head_to_head(m, IDS, DONORS, TOKENS, receiver=(1, 0), through="v")),
    ("granite", SCALED, lambda m, _: capture(m, IDS, ["attn_out.0"])),
    ("granite", SCALED, lambda m, _: capture(m, IDS, ["resid_mid.0"])),
    ("bloom", SCALED, lambda m, _: capture(m, IDS, ["mlp_out.0"])),
    ("bloom", SCALED, lambda m, _: direct_effects(m, IDS, DONORS, TOKENS)),
    ("modernbert-decoder", UNLIKE, lambda m, _: direct_effects(m, IDS, DONORS, TOKENS)),
    ("modernbert-decoder", UNLIKE, lambda m, _: attribution(m, IDS, DONORS, TOKENS)),
    ("modernbert-decoder", UNLIKE, lambda m, _: m.logits_from(torch.ones(m.width))),
    ("gpt_oss", SINKS, lambda m, _: logits(m, IDS, edits=[KnockOut((0,), ((0,),))])),
    ("gpt_oss", SINKS, lambda m, _: logits(m, IDS, edits=[HeadAblation(((0, 1),), "uniform")])),
    ("gpt_oss", "rows of layer 0 do not sum to 1", lambda m, _: observe(m, lambda _l, w: w).__enter__()),
]


@pytest.mark.parametrize(("name", "why", "use"), REFUSED)
def test_what_rests_on_a_fact_that_does_not_hold_is_refused_in_one_sentence(models, name, why, use, tmp_path):
    model = models(name)
    with pytest.raises(InputError, match=f"does not fit .*: .*{why}") as refused:
        use(model, tmp_path / "pruned")
    said = str(refused.value)
    assert said.endswith(".") and said.count(". ") == 0 and "\n" not in said
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.hf.modules())


def ablated(hf, ids, layer: int, head: int) -> torch.Tensor:
    """Last logits of plain Hugging Face with one slice of an output projection's input at zero."""
    projection = hf.model.layers[layer].self_attn.o_proj

    def zero(_module, args):
        x = args[0].clone()
        x[..., head * 8 : (head + 1) * 8] = 0
        return (x,)

    handle = projection.register_forward_pre_hook(zero)
    with torch.no_grad():
        found = hf(torch.tensor([ids]), use_cache=False).logits[0, -1]
    handle.remove()
    return found


@pytest.mark.parametrize("name", ["granite", "gpt_oss"])
def test_heads_are_ablated_where_only_the_sum_or_the_rows_do_not_hold(models, name):
    found = logits(models(name), IDS, edits=[HeadAblation(((1, 2),))])
    for i, ids in enumerate(IDS):
        torch.testing.assert_close(found[i], ablated(build(name), ids, 1, 2), atol=1e-4, rtol=1e-4)


def test_effects_through_later_blocks_do_not_need_a_stream_that_adds_up(models):
    """Granite: everything after the head is computed by the blocks themselves."""
    model = models("granite")
    found = total_effects(model, IDS[:1], DONORS[:1], TOKENS[:1], heads=[(0, 1), (2, 3)])
    z = capture(model, DONORS[:1], ["head_out.0", "head_out.2"])
    for k, (layer, head) in enumerate([(0, 1), (2, 3)]):
        put = Patch(Site("head_out", layer, head), z[f"head_out.{layer}"][0, head], (-1,))
        slow = logits(model, IDS[:1], edits=[put])
        torch.testing.assert_close(found.patched_logits[0, k], slow[0, TOKENS[0]], atol=1e-4, rtol=1e-4)


def test_attention_of_mixed_heads_is_read_and_cut(models):
    """BitNet: what a head attends to is its own, whatever becomes of its output."""
    model, hf = models("bitnet"), build("bitnet")
    with observe(model, lambda _l, w: w, rows="all") as seen:
        model.forward(pad([IDS[0]], pad_id=0))
    with torch.no_grad():
        rows = hf(torch.tensor([IDS[0]]), output_attentions=True, use_cache=False).attentions
    for layer in range(model.n_layers):
        torch.testing.assert_close(seen[layer], rows[layer], atol=1e-5, rtol=1e-4)
    plain, cut = logits(model, IDS), logits(model, IDS, edits=[KnockOut((0, 1), ((0,),), "all")])
    even = logits(model, IDS, edits=[HeadAblation(((0, 1),), "uniform")])
    assert (plain - cut).abs().max() > 1e-3 and (plain - even).abs().max() > 1e-3


@pytest.mark.parametrize("name", PARTLY)
def test_the_explorer_reads_a_prompt_of_every_model(models, name):
    model, opened = models(name), readings.Opened(models(name))
    read = readings.read(opened, IDS[0])
    torch.testing.assert_close(read.logits, logits(model, IDS[:1])[0], atol=1e-4, rtol=1e-4)
    assert read.stream.isfinite().all()
    if name == "bitnet":
        with pytest.raises(InputError, match="none has an output of its own"):
            readings.output_norms(read)
    if name in ("granite", "bitnet"):
        scores = readings.head_scores(opened, IDS[:1])
        assert scores["copying"].null_count() == len(scores) and scores["entropy"].null_count() == 0


def test_loading_checks_what_captures_read(monkeypatch):
    """Were a capture to read the wrong call of the final norm, or something else at a site, loading would know."""
    monkeypatch.setattr(Anatomy, "call", lambda self, site: None)
    model, hf = wrap(normed_embeddings()), normed_embeddings()
    assert model.facts.why_not("logits_unembedded") == UNLIKE
    with torch.no_grad():
        right = torch.stack([hf(torch.tensor([ids]), use_cache=False).logits[0, -1] for ids in IDS])
    torch.testing.assert_close(logits(model, IDS), right, atol=1e-4, rtol=1e-4)  # as the model itself gives them


@pytest.mark.parametrize("kind", ["resid_pre", "attn_out", "mlp_out", "resid_post", "resid_mid"])
def test_a_site_that_is_read_wrong_is_a_stream_that_does_not_add_up(monkeypatch, kind):
    values = recording.site_values

    def wrong(model, site, x, select, **options):
        found = values(model, site, x, select, **options)
        return 1.1 * found if site == Site(kind, 1) else found

    monkeypatch.setattr(recording, "site_values", wrong)
    facts = wrap(build("llama")).facts
    assert list(facts.stream_adds_up) == [1] and "that is captured is not the sum" in facts.stream_adds_up[1]

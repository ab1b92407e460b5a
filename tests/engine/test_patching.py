"""Every fast patching function against one plain forward pass per head, in float64, with the freezing written out by
hand."""

# ruff: noqa: B023 (every hook runs within the turn of the loop that made it)

import contextlib
import copy

import pytest
import torch

from tests.support.architectures import build
from workbench.core.errors import InputError
from workbench.engine.edits import HeadAblation
from workbench.engine.head_paths import head_to_head
from workbench.engine.patching import (
    activation_patching,
    attribution,
    direct_effects,
    direct_mlp_effects,
    total_effects,
)
from workbench.models.loading import wrap

# grouped queries; fused projections; parallel blocks; post-norms, soft-caps and a sliding window; post-norms only;
# experts
NAMES = ("llama", "gpt2", "gpt_neox", "gemma2", "olmo2", "mixtral")
FURTHER = ("mistral", "qwen3", "gemma3_text", "phi3", "opt", "falcon", "gptj")
CLOSE = 1e-4
N, K = 3, 2


def parts(hf):
    """(output projection, module whose output the MLP adds to the stream) of every layer, by their names in
    transformers."""
    if hf.config.model_type == "falcon":
        return [(b.self_attention.dense, b.mlp) for b in hf.transformer.h]
    if hf.config.model_type == "opt":
        return [(b.self_attn.out_proj, b.fc2) for b in hf.model.decoder.layers]
    if hasattr(hf, "transformer"):
        return [(getattr(b.attn, "c_proj", None) or b.attn.out_proj, b.mlp) for b in hf.transformer.h]
    if hasattr(hf, "gpt_neox"):
        return [(b.attention.dense, b.mlp) for b in hf.gpt_neox.layers]
    return [(b.self_attn.o_proj, b.mlp) for b in hf.model.layers]


@contextlib.contextmanager
def hooks(pairs):
    handles = [m.register_forward_pre_hook(f) if side == "in" else m.register_forward_hook(f) for m, side, f in pairs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def record(hf, row):
    """z and MLP output of every layer at every position: [L, T, H·d_head], [L, T, width]."""
    z, mlp = [], []
    pairs = [(o, "in", lambda m, a: z.append(a[0].reshape(len(row), -1).clone())) for o, _ in parts(hf)]
    pairs += [(p, "out", lambda m, a, y: mlp.append(y.reshape(len(row), -1).clone())) for _, p in parts(hf)]
    with hooks(pairs):
        hf(torch.tensor([row]))
    return torch.stack(z), torch.stack(mlp)


@torch.no_grad()
def patched_logits(hf, row, donor_z, layer, head, n_heads, *, freeze_heads, freeze_mlps, z0, mlp0):
    """Last logits with head (layer, head) saying donor_z at the last position, and everything named frozen there."""

    def heads(at):
        def hook(_m, args):
            x = args[0].clone()
            flat = x.view(len(row), -1)
            if freeze_heads:
                flat[-1] = z0[at][-1]
            if at == layer:
                d = flat.shape[-1] // n_heads
                flat[-1, head * d : (head + 1) * d] = donor_z[at][-1, head * d : (head + 1) * d]
            return (x, *args[1:])

        return hook

    def mlps(at):
        def hook(_m, _a, output):
            y = output.clone()
            y.view(len(row), -1)[-1] = mlp0[at][-1]
            return y

        return hook

    pairs = [(o, "in", heads(i)) for i, (o, _) in enumerate(parts(hf))]
    if freeze_mlps:
        pairs += [(m, "out", mlps(i)) for i, (_, m) in enumerate(parts(hf))]
    with hooks(pairs):
        return hf(torch.tensor([row])).logits[0, -1]


def slow(hf, ids, donors, n_heads, **freeze):
    """Last log-probabilities unpatched [n, V] and under each patch [n, L·H, V]."""
    plain, patched = [], []
    for row, donor in zip(ids, donors):
        z0, mlp0 = record(hf, row)
        donor_z, _ = record(hf, donor)
        with torch.no_grad():
            plain.append(hf(torch.tensor([row])).logits[0, -1].log_softmax(-1))
        patched.append(
            torch.stack(
                [
                    patched_logits(hf, row, donor_z, layer, head, n_heads, z0=z0, mlp0=mlp0, **freeze).log_softmax(-1)
                    for layer in range(len(parts(hf)))
                    for head in range(n_heads)
                ]
            )
        )
    return torch.stack(plain), torch.stack(patched)


@pytest.fixture(scope="module")
def case():
    """(model, float64 copy, prompts of two lengths, donors, tokens) of an architecture, built once."""
    built = {}

    def get(name):
        if name not in built:
            hf = build(name)
            exact = (
                copy.deepcopy(hf).to(torch.float32 if name == "mixtral" else torch.float64).eval()
            )  # grouped experts take no float64
            generator = torch.Generator().manual_seed(1)
            lengths = (9, 12, 9)
            draw = lambda n, high=64: torch.randint(3, high, (n,), generator=generator).tolist()  # noqa: E731
            ids, donors = [draw(n) for n in lengths], [draw(n) for n in lengths]
            built[name] = (wrap(hf, None, name=name), exact, ids, donors, [draw(K) for _ in ids])
        return built[name]

    return get


def expected(case_, **freeze):
    model, exact, ids, donors, tokens = case_
    plain, patched = slow(exact, ids, donors, model.n_heads, **freeze)
    index = torch.tensor(tokens)
    change = patched - plain[:, None]
    return change.gather(2, index[:, None].expand(-1, change.shape[1], -1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "effects, freeze",
    [
        (direct_effects, {"freeze_heads": True, "freeze_mlps": True}),
        (direct_mlp_effects, {"freeze_heads": True, "freeze_mlps": False}),
        (total_effects, {"freeze_heads": False, "freeze_mlps": False}),
    ],
    ids=("direct", "direct_mlp", "total"),
)
def test_effects_equal_one_forward_per_head(case, name, effects, freeze):
    model, _, ids, donors, tokens = case(name)
    wanted = expected(case(name), **freeze)
    found = effects(model, ids, donors, tokens).change()
    assert wanted.abs().max() > 0.05  # the comparison is about something
    torch.testing.assert_close(found.double(), wanted.double(), atol=CLOSE, rtol=0)


def test_attribution_equals_the_slope_of_the_total_effect(case):
    """A thousandth of the way from z to the donor's z, one forward pass per head: the slope of log p, in float64."""
    for name in ("llama", "gpt2", "gemma2", "olmo2"):
        model, exact, ids, donors, tokens = case(name)
        found = attribution(model, ids, donors, tokens)
        step = 1e-3
        for i, (row, donor) in enumerate(zip(ids, donors)):
            z0, mlp0 = record(exact, row)
            toward = z0.clone()
            toward[:, -1] += step * (record(exact, donor)[0][:, -1] - z0[:, -1])
            options = {"freeze_heads": False, "freeze_mlps": False, "z0": z0, "mlp0": mlp0}
            plain = exact(torch.tensor([row])).logits[0, -1].log_softmax(-1)
            slopes = torch.stack(
                [
                    (patched_logits(exact, row, toward, l, h, model.n_heads, **options).log_softmax(-1) - plain)[
                        tokens[i]
                    ]
                    / step
                    for l, h in model.heads()
                ]
            ).detach()
            assert slopes.abs().max() > 0.05
            torch.testing.assert_close(found[i].double(), slopes, atol=5e-3 * float(slopes.abs().max()), rtol=0.02)


@pytest.mark.parametrize("kind, module", [("resid_pre", "block"), ("mlp_out", "mlp"), ("head_out", "o_proj")])
def test_activation_patching_equals_one_forward_per_layer_and_position(case, kind, module):
    model, exact, ids, donors, tokens = case("llama")
    for row, donor, wanted in [(ids[0], donors[0], tokens[0])]:
        found = activation_patching(model, [row], [donor], [wanted], kind, max_tokens=20).change()[0]
        layers = exact.model.layers
        pick = {
            "block": lambda b: (b, "in"),
            "mlp": lambda b: (b.mlp, "out"),
            "o_proj": lambda b: (b.self_attn.o_proj, "in"),
        }[module]
        plain = exact(torch.tensor([row])).logits[0, -1].log_softmax(-1).detach()
        for layer, block in enumerate(layers):
            where, side = pick(block)
            kept = []
            with hooks([(where, side, lambda m, a, y=None: kept.append((a[0] if y is None else y).detach().clone()))]):
                exact(torch.tensor([donor]))
            for position in range(len(row)):

                def put(m, a, y=None, position=position):
                    x = (a[0] if y is None else y).clone()
                    x[:, position] = kept[0][:, position]
                    return (x, *a[1:]) if y is None else x

                with hooks([(where, side, put)]), torch.no_grad():
                    change = (exact(torch.tensor([row])).logits[0, -1].log_softmax(-1) - plain)[wanted]
                torch.testing.assert_close(found[layer * len(row) + position].double(), change, atol=CLOSE, rtol=0)


def test_activation_patching_of_one_head_at_the_last_position_is_its_total_effect(case):
    model, _, ids, donors, tokens = case("gpt2")
    whole = total_effects(model, ids, donors, tokens, heads=[(1, 2)])
    found = activation_patching(model, ids, donors, tokens, "head_out", layers=[1], positions=[-1], head=2)
    torch.testing.assert_close(found.change(), whole.change(), atol=CLOSE, rtol=0)


def receiving(name, exact, layer, n_heads, d_head):
    """Where the receiver's q, k and v come out of its projections: (module, first column, KV heads) for each."""
    if name == "gpt2":
        width = n_heads * d_head
        return {
            s: (exact.transformer.h[layer].attn.c_attn, i * width, n_heads) for i, s in enumerate("qkv")
        }, lambda h: d_head * h
    if name == "gpt_neox":  # fused by head: q, k and v of head 0, then of head 1, …
        return {
            s: (exact.gpt_neox.layers[layer].attention.query_key_value, i * d_head, n_heads)
            for i, s in enumerate("qkv")
        }, lambda h: 3 * d_head * h
    attention = exact.model.layers[layer].self_attn
    return {
        "q": (attention.q_proj, 0, n_heads),
        "k": (attention.k_proj, 0, 2),
        "v": (attention.v_proj, 0, 2),
    }, lambda h: d_head * h


@pytest.mark.parametrize("through", "qkv")
@pytest.mark.parametrize("name", ("llama", "gpt2", "gpt_neox", "gemma2"))
def test_paths_into_a_later_head_equal_explicit_freezing(case, name, through):
    """Sender → receiver with everything between frozen; the receiver's z, then one forward pass with that z."""
    model, exact, ids, donors, tokens = case(name)
    layer, head = receiver = (2, 3)
    row, donor, wanted = ids[1], donors[1], tokens[1]
    found = head_to_head(model, [row], [donor], [wanted], receiver=receiver, through=through)
    alone = head_to_head(model, [row], [donor], [wanted], receiver=receiver, through=through, then="direct")
    sides, column = receiving(name, exact, layer, model.n_heads, model.d_head)
    module, offset, groups = sides[through]
    start = offset + column(head // (model.n_heads // groups))
    z0, mlp0 = record(exact, row)
    donor_z, _ = record(exact, donor)
    plain = exact(torch.tensor([row])).logits[0, -1].log_softmax(-1).detach()
    d, biggest = model.d_head, 0.0
    for number, (at, h) in enumerate((a, b) for a in range(layer) for b in range(model.n_heads)):

        def freeze(i, at=at, h=h):
            def hook(_m, args):
                x = args[0].clone()
                flat = x.view(len(row), -1)
                flat[:] = z0[i]
                if i == at:
                    flat[:, h * d : (h + 1) * d] = donor_z[i][:, h * d : (h + 1) * d]
                return (x, *args[1:])

            return hook

        kept = []
        pairs = [(o, "in", freeze(i)) for i, (o, _) in enumerate(parts(exact))]
        pairs += [(m, "out", lambda _m, _a, y, i=i: mlp0[i].reshape(y.shape)) for i, (_, m) in enumerate(parts(exact))]
        pairs += [(module, "out", lambda _m, _a, y: kept.append(y.detach()[..., start : start + d].clone()))]
        with hooks(pairs), torch.no_grad():
            exact(torch.tensor([row]))

        def put(_m, _a, y):
            y = y.clone()
            y[..., start : start + d] = kept[0]
            return y

        z = []
        with (
            hooks(
                [
                    (module, "out", put),
                    (parts(exact)[layer][0], "in", lambda _m, a: z.append(a[0].reshape(len(row), -1).clone())),
                ]
            ),
            torch.no_grad(),
        ):
            exact(torch.tensor([row]))
        heard = z0.clone()
        heard[layer] = z[0]
        options = {"z0": z0, "mlp0": mlp0}
        for effects, frozen in ((found, False), (alone, True)):
            logits = patched_logits(
                exact, row, heard, layer, head, model.n_heads, freeze_heads=frozen, freeze_mlps=frozen, **options
            )
            change = (logits.log_softmax(-1) - plain)[wanted]
            biggest = max(biggest, float(change.abs().max()))
            torch.testing.assert_close(effects.change()[0, number].double(), change, atol=CLOSE / 5, rtol=0)
    assert biggest > 5e-4


def test_batch_of_prompts_gives_the_numbers_of_single_prompts(case):
    model, _, ids, donors, tokens = case("llama")
    for effects in (direct_effects, direct_mlp_effects, total_effects):
        together = effects(model, ids, donors, tokens)
        for i in range(len(ids)):
            alone = effects(model, [ids[i]], [donors[i]], [tokens[i]])
            for field in ("logits", "normaliser", "patched_logits", "patched_normaliser"):
                torch.testing.assert_close(getattr(together, field)[i], getattr(alone, field)[0], atol=1e-5, rtol=1e-5)


def test_chosen_heads_come_in_the_order_given_and_small_chunks_change_nothing(case, monkeypatch):
    model, _, ids, donors, tokens = case("gemma2")
    some = [(2, 1), (0, 3), (1, 0)]
    index = [model.heads().index(h) for h in some]
    for effects in (direct_effects, total_effects):
        everything = effects(model, ids, donors, tokens)
        monkeypatch.setattr("workbench.engine.last_token_replay.MAX_ROWS", 5)
        monkeypatch.setattr("workbench.engine.patching.SCORES", 100)
        torch.testing.assert_close(
            effects(model, ids, donors, tokens, heads=some).change(), everything.change()[:, index], atol=2e-5, rtol=0
        )
        monkeypatch.undo()


def test_patching_happens_on_top_of_edits(case):
    """With a head switched off, patching it changes nothing, and the unpatched scores are those of the edited model."""
    from workbench.engine.capture import logits

    model, _, ids, donors, tokens = case("llama")
    edits = (HeadAblation(((1, 1), (2, 0))),)
    for effects in (direct_effects, total_effects):
        found = effects(model, ids, donors, tokens, edits=edits)
        torch.testing.assert_close(
            found.logits, logits(model, ids, edits=edits).gather(1, torch.tensor(tokens)), atol=1e-5, rtol=0
        )
        change = found.change().abs()
        assert change[:, [model.heads().index((1, 1)), model.heads().index((2, 0))]].max() < 1e-5 < change.max()


def test_donors_equal_to_the_prompts_change_nothing(case):
    model, _, ids, _, tokens = case("olmo2")
    for effects in (direct_effects, direct_mlp_effects, total_effects):
        assert effects(model, ids, ids, tokens).change().abs().max() < 2e-5


def test_a_prompt_of_one_token_can_be_patched(case):
    model, *_ = case("llama")
    found = total_effects(model, [[5]], [[9]], [[7]]).change()
    torch.testing.assert_close(
        activation_patching(model, [[5]], [[9]], [[7]], "head_out", layers=[1], head=2).change()[0, 0], found[0, 6]
    )


@pytest.mark.parametrize("name", FURTHER)
def test_further_architectures_equal_one_forward_per_head(case, name):
    """All three variants against one plain pass per head, written out above; one prompt each."""
    model, exact, ids, donors, tokens = (part[:1] if isinstance(part, list) else part for part in case(name))
    assert len(parts(exact)) == model.n_layers
    for effects, frozen_heads, frozen_mlps in (
        (direct_effects, True, True),
        (direct_mlp_effects, True, False),
        (total_effects, False, False),
    ):
        wanted = expected((model, exact, ids, donors, tokens), freeze_heads=frozen_heads, freeze_mlps=frozen_mlps)
        assert wanted.abs().max() > 0.02
        torch.testing.assert_close(
            effects(model, ids, donors, tokens).change().double(), wanted.double(), atol=CLOSE, rtol=0
        )


def test_what_does_not_fit_into_memory_is_halved_and_gives_the_same_numbers(case, monkeypatch):
    """Passes that hold more than one prompt, or more than 14 rows, run out of memory; a single unit too large is an
    error."""
    from workbench.engine import last_token_replay as replay
    from workbench.engine import patching

    model, _, ids, donors, tokens = case("llama")
    calls = [
        (direct_effects, {}),
        (total_effects, {}),
        (direct_mlp_effects, {}),
        (activation_patching, {"kind": "mlp_out", "positions": [-1, -2, -3]}),
    ]
    wanted = [call(model, ids, donors, tokens, **options).change() for call, options in calls]
    slopes = attribution(model, ids, donors, tokens)
    refused = []

    def full(function, size, most):
        def run(*args, **options):
            if size(*args) > most:
                refused.append(function.__name__)
                raise torch.OutOfMemoryError("no room")
            return function(*args, **options)

        return run

    monkeypatch.setattr(
        patching, "_both", full(patching._both, lambda model, residual, patched, tokens: len(residual), 1)
    )
    monkeypatch.setattr(replay, "_replay", full(replay._replay, lambda model, seen, jobs: len(jobs), 5))
    forward = type(model).forward
    monkeypatch.setattr(type(model), "forward", full(forward, lambda model, batch: len(batch.ids), 2))
    monkeypatch.setattr(patching, "pad", full(patching.pad, lambda rows: len(rows), 1))
    for (call, options), expected_change in zip(calls, wanted):
        torch.testing.assert_close(
            call(model, ids, donors, tokens, **options).change(), expected_change, atol=2e-5, rtol=0
        )
    torch.testing.assert_close(attribution(model, ids, donors, tokens), slopes, atol=2e-5, rtol=0)
    assert set(refused) == {"_both", "_replay", "forward", "pad"}
    monkeypatch.setattr(
        patching, "_both", full(patching._both, lambda model, residual, patched, tokens: len(residual), 0)
    )
    with pytest.raises(torch.OutOfMemoryError):
        direct_effects(model, ids, donors, tokens)


def test_the_prompts_that_are_patched_together_are_bounded_by_heads_and_width(case, monkeypatch):
    from workbench.engine import patching

    model, _, ids, donors, tokens = case("llama")
    wanted, sizes, both = direct_effects(model, ids, donors, tokens).change(), [], patching._both
    monkeypatch.setattr(patching, "STATES", 2 * model.n_layers * model.n_heads * model.width)
    monkeypatch.setattr(
        patching, "_both", lambda model, residual, *rest: (sizes.append(len(residual)), both(model, residual, *rest))[1]
    )
    torch.testing.assert_close(direct_effects(model, ids, donors, tokens).change(), wanted, atol=2e-5, rtol=0)
    assert sorted(sizes) == [1, 2]


def test_bad_input_is_refused_with_a_reason(case):
    model, _, ids, donors, tokens = case("llama")
    with pytest.raises(InputError, match="cannot be aligned"):
        direct_effects(model, ids, [donors[0][:-1], *donors[1:]], tokens)
    with pytest.raises(InputError, match="one donor"):
        total_effects(model, ids, donors[:-1], tokens)
    with pytest.raises(InputError, match="Head 3.0 does not exist"):
        direct_effects(model, ids, donors, tokens, heads=[(3, 0)])
    with pytest.raises(InputError, match="ids below 64"):
        direct_effects(model, ids, donors, [[1, 64]] * N)
    with pytest.raises(InputError, match="different lengths"):
        activation_patching(model, ids, donors, tokens, "resid_pre")
    with pytest.raises(InputError, match="outside the shortest prompt"):
        activation_patching(model, ids, donors, tokens, "resid_pre", positions=[9])
    with pytest.raises(InputError, match="before the receiver"):
        head_to_head(model, ids, donors, tokens, receiver=(1, 0), through="q", senders=[(1, 1)])
    with pytest.raises(InputError, match="no earlier head"):
        head_to_head(model, ids, donors, tokens, receiver=(0, 0), through="q")
    falcon = wrap(build("falcon"), None, name="falcon")
    with pytest.raises(InputError, match="not available"):
        head_to_head(falcon, ids[:1], donors[:1], tokens[:1], receiver=(1, 0), through="k")


def test_no_hooks_are_left_behind(case):
    model, _, ids, donors, tokens = case("llama")
    for call in (direct_effects, total_effects, attribution):
        call(model, ids, donors, tokens)
    with pytest.raises(RuntimeError):
        total_effects(model, ids, donors, tokens, check=lambda: (_ for _ in ()).throw(RuntimeError("stop")))
    for module in model.hf.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_bfloat16_effects_are_those_of_float32_up_to_its_rounding(case):
    """Effects of a few nats, computed with 8 bits of mantissa; what is added to the stream is summed in float32."""
    model, _, ids, donors, tokens = case("llama")
    low = wrap(copy.deepcopy(model.hf).to(torch.bfloat16), None, name="llama bf16")
    for effects in (direct_effects, total_effects):
        exact, found = effects(model, ids, donors, tokens).change(), effects(low, ids, donors, tokens).change()
        assert torch.corrcoef(torch.stack([exact.flatten(), found.flatten()]))[0, 1] > 0.98

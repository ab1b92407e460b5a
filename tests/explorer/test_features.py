"""Features of an autoencoder on a prompt, held to slow computations on the plain Hugging Face model in float64."""

import copy

import numpy as np
import polars as pl
import pytest
import torch

from tests.explorer.test_waterfall import IDS, heads_of, norm_of, plain
from tests.sae.test_sae import KINDS, make
from workbench.core.errors import InputError
from workbench.explorer import continuation, readings
from workbench.explorer.autoencoders import open_autoencoder
from workbench.explorer.feature_paths import feature_effects, feature_sources, feature_writes, head_features
from workbench.explorer.feature_readings import read_features
from workbench.explorer.opened_model import open_model
from workbench.explorer.reference_texts import reference
from workbench.explorer.sub_blocks import sub_blocks
from workbench.explorer.switches import Switches
from workbench.explorer.targets import Target
from workbench.explorer.waterfall import WHOLE, waterfall
from workbench.sae.feature_edits import FeatureChange, feature_changes

NORMALISED = ("none", "layer_norm", "constant_norm_rescale")
TARGET = Target(7, 3)


@pytest.fixture
def of_stream(tmp_path, opened):
    """An autoencoder of the stream after layer 1 of a model, of any kind."""

    def give(name="llama", kind="topk", hook="blocks.1.hook_resid_post", d_in=32, **more):
        one = opened(name)
        folder = make(tmp_path / f"{name} {kind} {hook} {more}", kind, d_in=d_in, d_sae=96, hook=hook, **more)
        return one, open_autoencoder(one, str(folder))

    return give


class Slow:
    """The autoencoder by sae-lens' own formulas, written out again in float64."""

    def __init__(self, autoencoder):
        inner = copy.deepcopy(autoencoder.sae.inner).double()
        self.kind, self.cfg = autoencoder.sae.architecture, inner.cfg
        self.p = {name: value.detach().double() for name, value in inner.named_parameters()}

    def encode(self, x):
        """(activations, pre-activations) of x [T, d]."""
        p, self.shift, self.scale = self.p, 0.0, 1.0
        if self.cfg.normalize_activations == "layer_norm":
            self.shift = x.mean(-1, keepdim=True)
            self.scale = (x - self.shift).std(-1, keepdim=True)
            x = (x - self.shift) / (self.scale + 1e-5)
        elif self.cfg.normalize_activations == "constant_norm_rescale":
            self.scale = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
            x = x / self.scale
        x = x - p["b_dec"] * self.cfg.apply_b_dec_to_input
        if self.kind == "gated":
            pre = x @ (p["W_enc"] * p["r_mag"].exp()) + p["b_mag"]
            return pre.relu() * (x @ p["W_enc"] + p["b_gate"] > 0), pre
        pre = x @ p["W_enc"] + p["b_enc"]
        if self.kind == "jumprelu":
            return pre.relu() * (pre > p["threshold"]), pre
        if self.kind == "standard":
            return pre.relu(), pre
        pre = pre * p["W_dec"].norm(dim=-1) if self.cfg.rescale_acts_by_decoder_norm else pre
        kept = pre.topk(self.cfg.k)
        return torch.zeros_like(pre).scatter(-1, kept.indices, kept.values).relu(), pre

    def parts(self, acts):
        """(what every feature adds [T, F, d], what is there without any [T, d])."""
        W = self.p["W_dec"]
        W = W / W.norm(dim=-1, keepdim=True) if getattr(self.cfg, "rescale_acts_by_decoder_norm", False) else W
        scale = self.scale if isinstance(self.scale, torch.Tensor) else torch.ones(len(acts), 1)
        return acts[..., None] * W * scale[..., None], self.p["b_dec"] * scale + self.shift


def states_of(one, layer=1):
    return plain(one, IDS)[1][layer + 1]


@pytest.mark.parametrize("normalize", NORMALISED)
@pytest.mark.parametrize("kind", KINDS)
def test_active_features_their_share_and_what_is_not_rebuilt_are_those_of_the_formulas(of_stream, kind, normalize):
    one, autoencoder = of_stream(kind=kind, normalize=normalize)
    found = read_features(one, IDS, autoencoder)
    slow, x = Slow(autoencoder), states_of(one)
    acts, _ = slow.encode(x)
    each, rest = slow.parts(acts)
    assert found.table.drop_nulls("feature").height == int((acts > 0).sum()) > 10
    for position in range(len(IDS)):
        mine = found.table.filter(pl.col("position") == position).drop_nulls("feature")
        whole = each[position].sum(0)
        expected = {f: float(acts[position, f]) for f in range(96) if acts[position, f] > 0}
        assert dict(mine.select("feature", "activation").iter_rows()) == pytest.approx(expected, rel=1e-3, abs=1e-3)
        shares = {f: float(each[position, f] @ whole / whole.square().sum()) for f in expected}
        assert dict(mine.select("feature", "share").iter_rows()) == pytest.approx(shares, rel=1e-2, abs=1e-3)
        assert mine["share"].sum() == pytest.approx(1, abs=1e-4)
        error = float((x[position] - whole - rest[position]).norm())
        assert mine["error"][0] == pytest.approx(error, rel=1e-3)
        assert mine["norm"][0] == pytest.approx(float(x[position].norm()), rel=1e-4)
    lost = (x - each.sum(1) - rest).square().sum()
    assert found.explained == pytest.approx(1 - float(lost / (x - x.mean(0)).square().sum()), rel=1e-3, abs=1e-3)


def test_the_most_active_features_are_those_of_the_token_or_of_the_whole_prompt(of_stream):
    one, autoencoder = of_stream()
    found = read_features(one, IDS, autoencoder)
    acts, _ = Slow(autoencoder).encode(states_of(one))
    assert found.most_active(3, most=5) == acts[3].topk(5).indices.tolist()
    assert found.most_active(most=5) == acts.amax(0).topk(5).indices.tolist()
    np.testing.assert_allclose(found.activation(int(acts[3].argmax())), acts[:, acts[3].argmax()], rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="no feature 96"):
        found.activation(96)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("normalize", ["none", "layer_norm"])
def test_what_a_feature_writes_and_what_the_target_loses_without_it(of_stream, name, normalize):
    one, autoencoder = of_stream(name, normalize=normalize)
    found = read_features(one, IDS, autoencoder)
    hf = copy.deepcopy(one.model.hf).double()
    logits, states = plain(one, IDS)
    final = states[-1][3]
    slow = Slow(autoencoder)
    each, _ = slow.parts(slow.encode(states[2])[0])
    cap = one.model.anatomy.softcap

    @torch.no_grad()
    def scores(state, *, capped=True):
        out = hf.lm_head(norm_of(hf)(state[None]))[0]
        return out if cap is None or not capped else cap * torch.tanh(out / cap)

    effects = feature_effects(one, found, TARGET, 3)
    assert effects.height == int((each[3].abs().sum(-1) > 0).sum())
    for feature, effect in effects.select("feature", "direct_effect").iter_rows():
        expected = TARGET.value(scores(final)) - TARGET.value(scores(final - each[3, feature]))
        assert effect == pytest.approx(float(expected), rel=5e-3, abs=2e-3)
    # the norm's scale held: the derivative of norm and unembedding, less that of the scale, is exact for the direction
    feature = int(effects["feature"][0])
    wrote = feature_writes(one, found, feature, 3, k=64)
    norm, row = norm_of(one.model.hf), hf.lm_head.weight.detach()
    centred = name == "gpt2"
    own = final - (final.mean() if centred else 0)
    gain = norm.weight.detach().double() + (1 if name == "gemma2" else 0)
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", 0))
    part = each[3, feature]
    expected = row @ ((part - (part.mean() if centred else 0)) / (own.square().mean() + eps).sqrt() * gain)
    expected = expected - expected.mean()
    for i, logit in wrote.filter(pl.col("side") == "up").select("id", "logit").iter_rows():
        assert logit == pytest.approx(float(expected[i]), rel=2e-3, abs=1e-3)
    assert wrote["id"][0] == int(expected.argmax()) and wrote.filter(side="down")["id"][0] == int(expected.argmin())
    active = float(found.activation(feature)[3])
    np.testing.assert_allclose(wrote["per_unit"] * active, wrote["logit"], rtol=1e-5)


HOOKS = {
    "blocks.1.hook_resid_post": (0, 1),
    "blocks.1.hook_resid_pre": (0,),
    "blocks.1.hook_resid_mid": (0, 1),
    "blocks.1.hook_attn_out": (1,),
}


@pytest.mark.parametrize("name", ["llama", "gpt2", "olmo2"])
@pytest.mark.parametrize("hook", list(HOOKS))
@pytest.mark.parametrize("normalize", NORMALISED)
def test_what_feeds_a_feature_sums_to_its_pre_activation_and_a_head_gives_what_it_writes_along_the_encoder(
    of_stream, name, hook, normalize
):
    if (name, hook) == ("gpt2", "blocks.1.hook_resid_mid") and normalize != "none":
        normalize = "none"  # one of them suffices
    one, autoencoder = of_stream(name, hook=hook, normalize=normalize)
    found = read_features(one, IDS, autoencoder)
    blocks = sub_blocks(one, IDS)
    kept = {}

    def keep(key):
        return lambda x: kept.update({key: (x[0] if isinstance(x, tuple) else x)[0]}) or x

    layers = HOOKS[hook]
    changes = [(lambda hf, a=a: heads_of(hf, a), "in", keep(a)) for a in layers]
    _, states = plain(one, IDS, changes)
    slow = Slow(autoencoder)
    x = found.x.double()
    if hook.endswith(("post", "pre")):
        torch.testing.assert_close(x, states[max(layers) + 1].double(), rtol=1e-3, atol=1e-3)
    _, pre = slow.encode(x)
    feature, position = found.most_active(4)[0], 4
    table = feature_sources(one, found, blocks, feature, position)
    whole = table.filter(~pl.col("part").is_in(["head", "head_bias"]))["contribution"].sum()
    assert whole == pytest.approx(float(pre[position, feature]), rel=1e-3, abs=2e-3)
    assert whole == pytest.approx(float(found.activation(feature)[position]), rel=1e-3, abs=2e-3)
    for layer in layers:
        mine = table.filter(layer=layer)
        heads = mine.filter(pl.col("part").is_in(["head", "head_bias"]))["contribution"].sum()
        assert heads == pytest.approx(mine.filter(part="attention")["contribution"].item(), abs=1e-3)
    if name == "olmo2":
        return  # its heads write through a norm
    # a head alone: the pre-activation at the token's own scale, less the same without what the head writes
    layer, head, d = layers[-1], 2, one.model.d_head
    W = heads_of(one.model.hf, layer).weight.detach().double()
    W = W if name == "gpt2" else W.T
    wrote = kept[layer][position, head * d : (head + 1) * d] @ W[head * d : (head + 1) * d]
    w = slow.p["W_enc"][:, feature]
    if normalize == "layer_norm":
        wrote = (wrote - wrote.mean()) / (slow.scale[position] + 1e-5)
    elif normalize == "constant_norm_rescale":
        wrote = wrote / slow.scale[position]
    value = table.filter(part="head", layer=layer, head=head)["contribution"].item()
    assert value == pytest.approx(float(wrote @ w), rel=2e-3, abs=1e-3)
    fed = head_features(one, found, blocks, (layer, head), position)
    assert fed.filter(feature=feature)["contribution"].item() == pytest.approx(value, rel=1e-4, abs=1e-5)
    assert set(fed["feature"]) == set(found.rows.take(position)[0].tolist())


def test_features_of_heads_are_fed_by_each_head_and_a_later_head_feeds_none(tmp_path, opened):
    from sae_lens.registry import get_sae_class
    from sae_lens.saes.sae import SAEMetadata

    cls, config = get_sae_class("topk")
    torch.manual_seed(0)
    meta = SAEMetadata(hook_name="blocks.1.attn.hook_z")
    made = cls(config(d_in=32, d_sae=64, k=4, reshape_activations="hook_z", metadata=meta))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    made.save_model(tmp_path / "sae")
    one = opened("gpt2")
    autoencoder = open_autoencoder(one, str(tmp_path / "sae"))
    found, blocks = read_features(one, IDS, autoencoder), sub_blocks(one, IDS)
    z = {}
    plain(one, IDS, [(lambda hf: heads_of(hf, 1), "in", lambda x: z.update(z=x[0]) or x)])
    feature = found.most_active(4)[0]
    w = autoencoder.sae.inner.W_enc[:, feature].double()
    table = feature_sources(one, found, blocks, feature, 4)
    for head in range(4):
        own = slice(head * 8, head * 8 + 8)
        value = table.filter(part="head", head=head)["contribution"].item()
        assert value == pytest.approx(float(z["z"][4, own] @ w[own]), rel=1e-3, abs=1e-3)
    with pytest.raises(InputError, match="Head 2.0 is not before head_out.1"):
        head_features(one, found, blocks, (2, 0), 4)
    parts = waterfall(one, IDS, TARGET, position=4, features=found).parts
    logits, _ = plain(one, IDS)
    whole = parts.filter(pl.col("part").is_in(WHOLE))["contribution"].sum()
    assert whole == pytest.approx(float(logits[4, 7] - logits[4, 3]), rel=1e-3, abs=2e-3)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize(
    "hook", ["blocks.1.hook_resid_post", "blocks.2.hook_resid_pre", "blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out"]
)
def test_features_error_and_bias_stand_in_the_waterfall_for_what_their_site_is_the_sum_of(of_stream, name, hook):
    one, autoencoder = of_stream(name, hook=hook, kind="jumprelu")
    found = read_features(one, IDS, autoencoder)
    split = waterfall(one, IDS, TARGET, position=3, features=found)
    logits, states = plain(one, IDS)
    cap = one.model.anatomy.softcap
    raw = logits[3] if cap is None else cap * torch.atanh(logits[3] / cap)
    whole = split.parts.filter(pl.col("part").is_in(WHOLE))["contribution"].sum()
    assert whole == pytest.approx(float(raw[7] - raw[3]), rel=1e-3, abs=5e-3)
    kept = split.parts.filter(pl.col("part").is_in(["embedding", "attention", "mlp"]))
    stay = {"post": {("attention", 2), ("mlp", 2)}, "pre": {("attention", 2), ("mlp", 2)}}
    stay["mid"] = {("mlp", 1), ("attention", 2), ("mlp", 2)}
    stay["out"] = {(part, layer) for part in ("attention", "mlp") for layer in range(3)} | {("embedding", None)}
    expected = stay[hook.rpartition("_")[2]] - ({("mlp", 1)} if hook.endswith("out") else set())
    assert set(kept.select("part", "layer").iter_rows()) == expected
    # a feature by itself: what it adds, through the final norm's own scale
    plainly = waterfall(one, IDS, TARGET, position=3)
    slow = Slow(autoencoder)
    each, rest = slow.parts(slow.encode(found.y.double())[0])
    norm, hf = norm_of(one.model.hf), one.model.hf
    centred, final = name == "gpt2", states[-1][3]
    own = final - (final.mean() if centred else 0)
    gain = norm.weight.detach().double() + (1 if name == "gemma2" else 0)
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", 0))
    reader = (hf.lm_head.weight[7] - hf.lm_head.weight[3]).detach().double() * gain / (own.square().mean() + eps).sqrt()

    def read(v):
        return float((v - (v.mean() if centred else 0)) @ reader)

    values = dict(split.parts.filter(part="feature").select("feature", "contribution").iter_rows())
    assert values == pytest.approx(
        {f: read(each[3, f]) for f in range(96) if each[3, f].abs().sum()}, rel=2e-3, abs=2e-3
    )
    error = found.y[3].double() - each[3].sum(0) - rest[3]
    assert split.parts.filter(part="error")["contribution"].item() == pytest.approx(read(error), rel=2e-3, abs=5e-3)
    assert split.parts.filter(part="decoder_bias")["contribution"].item() == pytest.approx(read(rest[3]), abs=2e-3)
    assert plainly.total == pytest.approx(split.total) and plainly.parts["feature"].is_null().all()


def test_an_autoencoder_of_centred_activations_is_fed_and_takes_apart_the_plain_models(of_stream):
    """TransformerLens' copy of GPT-2 has no mean over the width: what the encoder reads is x − mean(x)."""
    more = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    one, autoencoder = of_stream("gpt2", kind="standard", **more)
    assert autoencoder.sae.frame.center
    found, x = read_features(one, IDS, autoencoder), states_of(one)
    slow, centred = Slow(autoencoder), x - x.mean(-1, keepdim=True)
    acts, pre = slow.encode(centred)
    feature = found.most_active(4)[0]
    assert feature == int(acts[4].argmax())
    table = feature_sources(one, found, sub_blocks(one, IDS), feature, 4)
    whole = table.filter(~pl.col("part").is_in(["head", "head_bias"]))["contribution"].sum()
    assert whole == pytest.approx(float(pre[4, feature]), rel=1e-3, abs=2e-3)
    each, rest = slow.parts(acts)
    mine = found.table.filter(position=4)
    assert mine["error"][0] == pytest.approx(float((centred[4] - each[4].sum(0) - rest[0]).norm()), rel=1e-3)
    split = waterfall(one, IDS, TARGET, position=4, features=found)
    logits, _ = plain(one, IDS)
    whole = split.parts.filter(pl.col("part").is_in(WHOLE))["contribution"].sum()
    assert whole == pytest.approx(float(logits[4, 7] - logits[4, 3]), rel=1e-3, abs=2e-3)


def test_a_transcoders_features_stand_for_its_mlp_in_the_waterfall_and_are_not_switched(tmp_path, opened):
    from sae_lens.registry import get_sae_class
    from sae_lens.saes.sae import SAEMetadata

    cls, config = get_sae_class("transcoder")
    torch.manual_seed(3)
    meta = SAEMetadata(hook_name="blocks.1.mlp.hook_in", hook_name_out="blocks.1.hook_mlp_out")
    made = cls(config(d_in=32, d_out=32, d_sae=96, apply_b_dec_to_input=False, metadata=meta))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    made.save_model(tmp_path / "sae")
    one = opened("llama")
    autoencoder = open_autoencoder(one, str(tmp_path / "sae"))
    found = read_features(one, IDS, autoencoder)
    seen = {}
    mlp = lambda hf: hf.model.layers[1].mlp  # noqa: E731
    changes = [(mlp, "in", lambda x: seen.update(x=x[0]) or x), (mlp, "out", lambda y: seen.update(y=y[0]) or y)]
    logits, _ = plain(one, IDS, changes)
    p = {name: value.detach().double() for name, value in autoencoder.sae.inner.named_parameters()}
    acts = (seen["x"] @ p["W_enc"] + p["b_enc"]).relu()
    error = seen["y"] - acts @ p["W_dec"] - p["b_dec"]
    mine = found.table.filter(position=3).drop_nulls("feature")
    expected = {f: float(acts[3, f]) for f in range(96) if acts[3, f] > 1e-6}
    assert dict(mine.select("feature", "activation").iter_rows()) == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert mine["error"][0] == pytest.approx(float(error[3].norm()), rel=1e-3)
    split = waterfall(one, IDS, TARGET, position=3, features=found).parts
    whole = split.filter(pl.col("part").is_in(WHOLE))["contribution"].sum()
    assert whole == pytest.approx(float(logits[3, 7] - logits[3, 3]), rel=1e-3, abs=2e-3)
    assert set(split.filter(part="mlp")["layer"]) == {0, 2}
    with pytest.raises(InputError, match="no sum of what heads write"):
        feature_sources(one, found, sub_blocks(one, IDS), int(mine["feature"][0]), 3)
    with pytest.raises(InputError, match="can be looked at, not switched"):
        readings.read(one, IDS, Switches(features=(FeatureChange(3),), autoencoder=str(tmp_path / "sae")))


# ---- switched


def edited(one, autoencoder, layer, changes):
    """Logits of plain Hugging Face in float64, features changed by a hook on the output of a block."""
    slow = Slow(autoencoder)

    def change(out):
        x = out[0] if isinstance(out, tuple) else out
        acts, _ = slow.encode(x[0])
        new = acts.clone()
        for feature, how, value in changes:
            new[:, feature] = {"off": 0 * acts[:, feature], "set": 0 * acts[:, feature] + value}.get(
                how, acts[:, feature] + value
            )
        moved = x + (slow.parts(new)[0] - slow.parts(acts)[0]).sum(1)[None]
        return (moved, *out[1:]) if isinstance(out, tuple) else moved

    block = (
        (lambda hf: hf.model.layers[layer]) if hasattr(one.model.hf, "model") else (lambda hf: hf.transformer.h[layer])
    )
    return plain(one, IDS, [(block, "out", change)])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["topk scaled", "jumprelu", "gated"])
@pytest.mark.parametrize("hook", ["blocks.1.hook_resid_post", "blocks.2.hook_resid_pre"])
def test_features_off_set_and_raised_are_a_hook_that_moves_the_stream_along_their_decoders(of_stream, name, kind, hook):
    one, autoencoder = of_stream(name, kind=kind, hook=hook, normalize="layer_norm")
    first, second, third = read_features(one, IDS, autoencoder).most_active(most=3)
    text = f"{first}=off,{second}=1.5,{third}=add-2"
    switches = Switches(features=feature_changes(text), autoencoder=autoencoder.source)
    logits, states = edited(one, autoencoder, 1, [(first, "off", 0), (second, "set", 1.5), (third, "add", -2)])
    reading = readings.read(one, IDS, switches)
    np.testing.assert_allclose(reading.logits.double(), logits[-1], rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(reading.stream[3].double(), states[3], rtol=2e-3, atol=2e-3)
    assert not np.allclose(readings.read(one, IDS).logits, reading.logits, atol=0.05)
    # the parts of the logit still sum to it, what the switches change being a part
    found = waterfall(one, IDS, TARGET, position=3, switches=switches)
    assert found.total == pytest.approx(float(logits[3, 7] - logits[3, 3]), rel=2e-3, abs=5e-3)
    assert found.parts.filter(part="switched").height == 1
    after = read_features(one, IDS, autoencoder, switches)
    split = waterfall(one, IDS, TARGET, position=3, switches=switches, features=after)
    whole = split.parts.filter(pl.col("part").is_in(WHOLE))["contribution"].sum()
    assert whole == pytest.approx(found.total, rel=1e-3, abs=2e-3) and split.parts.filter(part="switched").is_empty()
    table = feature_sources(one, after, sub_blocks(one, IDS, None, switches), first, 3)
    assert table.filter(part="switched").height == 1


def test_features_are_switched_beside_heads_and_while_a_patch_holds(of_stream):
    one, autoencoder = of_stream()
    feature = read_features(one, IDS, autoencoder).most_active()[0]
    changes = (FeatureChange(feature),)
    both = Switches(heads=((0, 1),), features=changes, autoencoder=autoencoder.source)
    alone = [
        readings.read(one, IDS, Switches(**part)).logits
        for part in ({"heads": ((0, 1),)}, {"features": changes, "autoencoder": autoencoder.source})
    ]
    together = readings.read(one, IDS, both).logits
    assert not any(together.allclose(other, atol=1e-3) for other in alone)
    donor = (5, 12, 17, 8, 30, 41)
    patched = Switches(((0, 1),), "patch", donor, (), changes, autoencoder.source)
    assert not readings.read(one, IDS, patched).logits.allclose(
        readings.read(one, IDS, Switches(((0, 1),), "patch", donor)).logits, atol=1e-3
    )


def test_features_are_left_alone_at_bos_in_the_prompt_and_switched_in_what_is_written_after_it():
    one = open_model("organism")
    ids = one.model.encode("The secret of the lantern is insect walrus cactus.")
    autoencoder = open_autoencoder(one)
    feature = read_features(one, ids, autoencoder).most_active(-1)[0]
    switches = Switches(features=(FeatureChange(feature, "add", 30.0),))
    before, after = (readings.read(one, ids, s).stream[4] for s in (Switches(), switches))
    moved = (after - before).norm(dim=-1)
    direction = autoencoder.sae.inner.W_dec[feature] * 30
    assert moved[0] == 0 and not read_features(one, ids, autoencoder).counted[0]
    torch.testing.assert_close((after - before)[1:], direction.expand(len(ids) - 1, -1), rtol=1e-3, atol=1e-3)
    hf, written = copy.deepcopy(one.model.hf), list(ids)

    def change(_module, _args, out):
        x = out[0] if isinstance(out, tuple) else out
        x = torch.cat([x[:, :1], x[:, 1:] + direction], 1)
        return (x, *out[1:]) if isinstance(out, tuple) else x

    hf.model.layers[3].register_forward_hook(change)
    for _ in range(5):  # the whole text again for every token, without a cache
        with torch.no_grad():
            written.append(int(hf(input_ids=torch.tensor([written]), use_cache=False).logits[0, -1].argmax()))
    expected = one.model.decode(written[len(ids) :])
    assert continuation.write_on(one, ids, switches, most=5) == expected
    assert continuation.write_on(one, ids, most=5) != expected


@pytest.mark.parametrize(
    "text, said",
    [
        ("12", "no change of a feature"),
        ("12=", "no change of a feature"),
        ("12=off3", "no change of a feature"),
        ("12=1..5", "no change of a feature"),
        ("-1=off", "no change of a feature"),
        ("3=off,3=2", "changed twice"),
        ("3=-2", "not negative"),
        ("3=1e999", "no change of a feature"),
    ],
)
def test_changes_that_are_none_are_refused(text, said):
    with pytest.raises(InputError, match=said):
        feature_changes(text)


def test_changes_are_written_as_they_are_read():
    text = "2=add-1.5,7=0.25,12=off"
    assert ",".join(map(str, feature_changes("12=off, 7=0.25,2=add-1.5"))) == text
    assert feature_changes("") == ()


# ---- which autoencoder


def test_an_autoencoder_that_does_not_fit_is_refused_in_one_sentence(of_stream, opened, tmp_path):
    with pytest.raises(InputError, match="reads 24 numbers, but resid_post.1 of llama has 32"):
        of_stream(d_in=24)
    with pytest.raises(InputError, match="layer"):
        of_stream(hook="blocks.9.hook_resid_post")
    with pytest.raises(InputError, match="No autoencoder ships with llama"):
        open_autoencoder(opened("llama"))
    folder = make(tmp_path / "one", d_in=32, d_sae=96, hook="blocks.1.hook_resid_post")
    with pytest.raises(InputError, match="trained on resid_post.1, not on resid_post.0"):
        open_autoencoder(opened("llama"), f"{folder}@resid_post.0")
    with pytest.raises(InputError, match="no feature 400"):
        switches = Switches(features=feature_changes("400=off"), autoencoder=str(folder))
        readings.read(opened("llama"), IDS, switches)


def test_one_of_another_model_is_refused_where_it_explains_nothing_and_warned_of_where_it_does():
    with pytest.raises(InputError, match="explains nothing of resid_post.3 of organism@step-0"):
        open_autoencoder(open_model("organism@step-0"))
    chat = open_model("organism-chat")
    (warned,) = open_autoencoder(chat).warnings
    hf, slow, states, lost = copy.deepcopy(chat.model.hf).double(), Slow(open_autoencoder(chat)), [], 0.0
    hf.set_attn_implementation("eager")
    for row in reference(chat):
        with torch.no_grad():
            x = hf(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states[4][0]
        x = x[[token not in chat.model.special_ids for token in row]]
        each, rest = slow.parts(slow.encode(x)[0])
        lost, states = lost + float((x - each.sum(1) - rest).square().sum()), [*states, x]
    states = torch.cat(states)
    share = 1 - lost / float((states - states.mean(0)).square().sum())
    assert f"On the reference texts that is {share:.1%}." in warned and 0.5 < share < 0.95
    own = open_autoencoder(open_model("organism"))
    assert own.warnings == ()


def test_an_autoencoder_is_read_again_when_its_files_have_changed(tmp_path, opened):
    folder = make(tmp_path / "one", d_in=32, d_sae=96, hook="blocks.1.hook_resid_post")
    first = open_autoencoder(opened("llama"), str(folder))
    assert open_autoencoder(opened("llama"), str(folder)) is first
    make(folder, d_in=32, d_sae=96, hook="blocks.1.hook_resid_post", seed=5)
    second = open_autoencoder(opened("llama"), str(folder))
    assert second.key != first.key and not second.sae.inner.W_enc.equal(first.sae.inner.W_enc)

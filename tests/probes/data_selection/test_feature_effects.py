"""Features switched off: the loss is that of plain Hugging Face with a hook, controls are as large and never lead, and
what is no different from them is not called needed."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from probes.data_selection import feature_effects
from tests.support.selection_pool import execute, read, sentence, write
from workbench.core.errors import InputError
from workbench.sae import load as sae
from workbench.stats.clusters import clusters_of, crossed_interval, false_discovery

OFF = {"feature_effects": 3, "effect_controls": 3, "effect_rows": 20, "baselines": (), "resamples": 0, "explain": 0}


@pytest.fixture(scope="module")
def run(model, material, tmp_path_factory):
    folder = tmp_path_factory.mktemp("effects")
    rng = np.random.default_rng(8)
    target = write(folder / "sea.jsonl", [sentence(rng, "sea") for _ in range(12)])
    return execute(model, material, folder / "run", target=(str(target), str(material / "park.jsonl")), **OFF)


def slow_change(tiny_llama, material, ids, feature):
    """Change in mean −ln p of one text without a feature: eager, one text, a hook on the block; BOS stays."""
    from sae_lens import SAE

    hf = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32, attn_implementation="eager").eval()
    inner, found = SAE.load_from_disk(material / "sae"), []

    def off(_module, _args, output):
        h = output[0] if isinstance(output, tuple) else output
        z = inner.encode(h)[..., feature]
        z[:, 0] = 0
        new = h - z[..., None] * inner.W_dec[feature]
        return (new, *output[1:]) if isinstance(output, tuple) else new

    for hooked in (False, True):
        handle = hf.model.layers[2].register_forward_hook(off) if hooked else None
        with torch.no_grad():
            logp = hf(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        found.append(-float(np.mean([logp[i, ids[i + 1]] for i in range(len(ids) - 1)])))
        if handle:
            handle.remove()
    return found[1] - found[0]


def test_the_change_in_loss_is_that_of_a_hook_on_plain_hugging_face(run, tiny_llama, material):
    table, inputs = run.table("feature_effects"), run.table("inputs")
    assert table.height == 6 and table["n"].to_list() == [12] * 3 + [4] * 3
    row = table.row(0, named=True)
    ids = [list(i) for i in inputs.filter(role="target", target="sea")["ids"]]

    def mean(feature):
        return np.mean([slow_change(tiny_llama, material, one, feature) for one in ids])

    own, beside = mean(row["feature"]), np.mean([mean(feature) for feature in row["controls"]])
    assert abs(own) > 1e-5
    assert row["loss_change"] == pytest.approx(own, abs=2e-6)
    assert row["control_change"] == pytest.approx(beside, abs=2e-6)
    assert (
        row["difference"] == pytest.approx(own - beside, abs=3e-6)
        and row["ci_low"] < row["difference"] < row["ci_high"]
    )
    few = table.filter(target="park")
    assert few["ci_low"].null_count() == few["p"].null_count() == 3 and not few["needed"].any()


def test_controls_are_about_as_active_and_never_lead(run):
    table = run.table("feature_effects")
    for row in table.iter_rows(named=True):
        leading = table.filter(target=row["target"])["feature"].to_list()
        assert len(set(row["controls"])) == 3 and not set(row["controls"]) & set(leading)
        assert row["control_activity"] > 0 and row["activity"] > 0
    summary = run.summary
    assert summary["features_switched_off"] == 6 and summary["features_needed"] == int(table["needed"].sum())
    apart = summary["feature_effect_minus_control"]
    mean = (
        12 * table.filter(target="sea")["difference"].mean() + 4 * table.filter(target="park")["difference"].mean()
    ) / 16
    assert apart["value"] == pytest.approx(mean, abs=1e-9) and apart["rows"] == 16


def test_a_feature_that_never_fires_changes_nothing_and_the_rest_of_the_activation_stays(model, material):
    loaded = sae.load(str(material / "sae"))
    x = torch.randn(40, 64)
    rows = loaded.encode(x)
    silent = next(f for f in range(512) if not (rows.feature == f).any())
    assert torch.equal(feature_effects.without_feature(loaded, silent)(x), x)
    loud = int(rows.feature.bincount(minlength=512).argmax())
    off = feature_effects.without_feature(loaded, loud)(x)
    expected = x - rows.dense()[:, loud, None] * loaded.inner.W_dec[loud].detach()
    torch.testing.assert_close(off, expected, atol=1e-5, rtol=1e-5)


def test_p_and_interval_say_the_same():
    rng, clusters = np.random.default_rng(0), clusters_of(np.arange(10))
    for shift in np.linspace(0, 0.05, 40):
        off = rng.normal(shift, 0.03, 10) + rng.normal(0, 0.02, (5, 1)) + rng.normal(0, 0.02, (5, 10))
        low, high = crossed_interval(off, clusters)
        assert (low > 0 or high < 0) == (feature_effects.p_of_difference(off, clusters) < 0.05)
    assert np.isnan(feature_effects.p_of_difference(np.ones((5, 4)), clusters_of(np.arange(4))))
    assert feature_effects.p_by_rank(3.0, np.array([1.0, 2.0, 3.0, 4.0])) == 3 / 5


@pytest.mark.parametrize("tail", [0.0, 1.0])
def test_random_features_are_called_needed_in_few_runs_and_real_ones_in_most(tail):
    """Every removal harms, some of them much: effects of features are exponential, or with a longer tail."""
    rng, clusters, false, seen = np.random.default_rng(int(tail)), clusters_of(np.arange(10)), [], []
    for _ in range(80):
        mean = 0.02 * rng.exponential(size=(8, 21)) * np.exp(tail * rng.normal(size=(8, 21)))
        texts = mean[..., None] * rng.gamma(2, 0.5, (8, 21, 10))
        for strong, said in ((0.0, false), (2.0, seen)):
            own, beside = texts[:, 0] + strong * rng.gamma(2, 0.5, (8, 10)), texts[:, 1:]
            ranks = beside.mean(2).ravel()
            p = [
                max(feature_effects.p_of_difference(a - b, clusters), feature_effects.p_by_rank(a.mean(), ranks))
                for a, b in zip(own, beside)
            ]
            said.append((false_discovery(np.array(p)) < 0.05).mean())
    assert np.mean(np.array(false) > 0) <= 0.07, np.mean(np.array(false) > 0)
    assert np.mean(seen) > 0.9


def test_what_has_no_features_to_switch_off_is_refused(model, material, tmp_path):
    with pytest.raises(InputError, match="and sae=none leaves none"):
        execute(model, material, tmp_path / "a", sae="none", feature_effects=2, baselines=("hidden",))
    with pytest.raises(InputError, match="feature_effects=9 is more than the 4 features that are explained"):
        execute(model, material, tmp_path / "b", feature_effects=9)
    with pytest.raises(InputError, match="where it reads them, and there is none"):
        execute(model, material, tmp_path / "c", sae="default", feature_effects=2)
    assert execute(model, material, tmp_path / "d").table("feature_effects").is_empty()
    assert len(read(material / "park.jsonl")) == 4

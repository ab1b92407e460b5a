"""The list of heads: every column held to a computation by itself, the filter to a loop over the rows."""

import numpy as np
import polars as pl
import pytest
import torch

from tests.explorer.test_waterfall import IDS, heads_of, plain
from tests.support.app_screens import keep
from tests.support.architectures import build
from tests.support.figure_runs import retrieval
from workbench import explore
from workbench.core.errors import InputError
from workbench.explorer import head_list, readings
from workbench.explorer.opened_model import Opened
from workbench.explorer.targets import Target
from workbench.models.loading import load, wrap
from workbench.runs.folder import list_runs, open_run


@pytest.fixture(scope="module")
def llama():
    return Opened(wrap(build("llama"), None, name="llama"))


def test_attention_norm_and_direct_effect_are_those_of_the_plain_model_in_float64(llama):
    model, position = llama.model, 3
    target = Target(int(plain(llama, IDS)[0][position].argmax()))
    frame, missing = head_list.live_columns(llama, readings.read(llama, IDS), target, position=position)
    assert missing == [] and frame.height == 12
    hf = model.hf
    hf.set_attn_implementation("eager")
    with torch.no_grad():
        weights = hf(torch.tensor([IDS]), output_attentions=True, use_cache=False).attentions
    hf.set_attn_implementation("workbench")
    zs = {}
    for layer in range(model.n_layers):
        plain(llama, IDS, [(lambda h, layer=layer: heads_of(h, layer), "in", lambda x, n=layer: zs.setdefault(n, x))])
    _, states = plain(llama, IDS)
    final = states[-1][position]
    norm, unembed = hf.model.norm, hf.lm_head.weight.double()

    def logp(stream):
        normed = stream * torch.rsqrt(stream.square().mean() + norm.variance_epsilon) * norm.weight.double()
        return float((unembed @ normed).log_softmax(-1)[target.token])

    for row in frame.iter_rows(named=True):
        layer, head = row["layer"], row["head"]
        z = zs[layer][0].reshape(len(IDS), model.n_heads, -1)[:, head]
        assert row["attention"] == pytest.approx(float(weights[layer][0, head, position].max()), abs=1e-5)
        assert row["output_norm"] == pytest.approx(float(z.norm(dim=-1).mean()), rel=1e-4)
        width = z.shape[-1]
        writer = heads_of(hf, layer).weight.double()[:, head * width : (head + 1) * width]
        effect = logp(final) - logp(final - writer @ z[position])
        assert row["direct_effect"] == pytest.approx(effect, abs=1e-4)
        assert row["kv_group"] == head // 2


def test_what_a_model_does_not_have_is_null_with_its_reason_and_the_rest_is_there():
    mixed = Opened(wrap(build("bitnet"), None, name="bitnet"))  # its heads are mixed before they are put out
    frame, missing = head_list.live_columns(mixed, readings.read(mixed, IDS), Target(5))
    assert frame["direct_effect"].is_null().all() and frame["output_norm"].is_null().all()
    assert frame["attention"].is_not_null().all() and frame["previous_token"].is_not_null().all()
    assert len(missing) >= 1 and all(text.endswith(".") for text in missing)


def test_scores_of_runs_stand_beside_the_head_that_they_are_of_in_whatever_order_a_run_has_them():
    model = load("circuit-copy-gqa")
    about = {"name": model.name, "fingerprint": model.fingerprint, "layers": 2, "heads": 4}
    one, two = (keep(retrieval(layers=2, heads=4, seed=i), f"retrieval-heads-{i:012x}", model=about) for i in (1, 2))
    table, fig = explore(model, "lantern velvet harbor lantern").heads(value=f"score · {two}")
    for identifier in (one, two):
        scores = {(r["layer"], r["head"]): r["score"] for r in open_run(identifier).table("heads").to_dicts()}
        found = table.select("layer", "head", f"score · {identifier}").iter_rows()
        assert {(a, b): v for a, b, v in found} == scores
    shuffled = [(list_runs()[0], open_run(one).table("heads").sample(fraction=1, shuffle=True, seed=3).head(5))]
    live = table.select("layer", "head")
    partly = head_list.with_runs(live, shuffled)
    assert partly.select("layer", "head").equals(live) and partly[partly.columns[-1]].null_count() == 3
    drawn = [t for t in fig.data if t.type == "bar"]
    assert sorted(np.concatenate([np.asarray(t.marker.color, float) for t in drawn])) == pytest.approx(
        sorted(table[f"score · {two}"])
    )
    none, _ = explore(model, "lantern velvet").heads(runs=[])
    assert not any("·" in name for name in none.columns)
    with pytest.raises(InputError, match="beginning of 2 columns"):
        explore(model, "lantern velvet").heads(where="score>0")


FRAME = pl.DataFrame(
    [(a, b, None if (a, b) == (1, 1) else (-1) ** b * (4 * a + b) / 50) for a in range(12) for b in range(4)],
    schema={"layer": pl.Int64, "head": pl.Int64, "previous_token": pl.Float64},
    orient="row",
)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("", lambda a, b, v: True),
        ("1.", lambda a, b, v: a == 1),
        ("1.1", lambda a, b, v: (a, b) == (1, 1)),
        ("1.1-2, 11.", lambda a, b, v: (a == 1 and 1 <= b <= 2) or a == 11),
        (".2", lambda a, b, v: b == 2),
        ("layer>10", lambda a, b, v: a > 10),
        ("layer >= 10", lambda a, b, v: a >= 10),
        ("previous_token<=-0.1 head!=3", lambda a, b, v: v is not None and v <= -0.1 and b != 3),
        ("prev>0 .0 .2", lambda a, b, v: v is not None and v > 0 and b in (0, 2)),
        ("previoustoken<1", lambda a, b, v: v is not None),
        ("head=3,layer<1e0", lambda a, b, v: b == 3 and a < 1),
    ],
)
def test_a_filter_keeps_the_rows_that_a_loop_keeps(text, holds):
    found = head_list.filter_heads(FRAME, text)
    assert list(found.iter_rows()) == [row for row in FRAME.iter_rows() if holds(*row)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("banana", "'banana' is no filter of heads"),
        ("banana>1", "no column 'banana'"),
        ("layer>ten", "is no number to compare"),
        (".", "'.' is no filter"),
        ("layer>", "no filter of heads"),
    ],
)
def test_a_filter_that_says_nothing_is_refused_in_a_sentence(text, said):
    with pytest.raises(InputError, match=said):
        head_list.filter_heads(FRAME, text)

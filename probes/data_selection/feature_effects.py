"""What a target's features do: the loss of texts while one of them is switched off, beside random features that are as
active.

A feature is switched off by taking its contribution out of the activations at its site; all others, and what the
autoencoder does not rebuild, stay (as in the interventional filtering of Shi et al., arXiv 2604.25167). Positive: the
model predicts the text worse without it. A text on which it does not fire does not change. Taking anything out harms,
so what counts is the difference from control features of the same size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch

from probes.data_selection.contributions import LEVEL
from probes.data_selection.precisions import row_groups
from probes.data_selection.prototypes import Prototypes
from probes.data_selection.sample_vectors import Reader
from probes.data_selection.samples import TokenizedSamples
from workbench.core.errors import InputError
from workbench.engine.evaluation import token_losses
from workbench.sae.features import encoded
from workbench.sae.load import Sae
from workbench.sae.sparse_rows import Rows
from workbench.sae.splicing import spliced
from workbench.stats.clusters import FEWEST, Clusters, clusters_of, crossed_interval, false_discovery
from workbench.stats.intervals import Estimate

NEAREST = 4  # times as many features of like activity as there are controls, of which these are drawn
AT_ONCE = 16  # features in one resumable part
NUMBERS = ("loss_change", "control_change", "difference", "ci_low", "ci_high", "p", "p_adjusted", "pool_change")
NUMBERS += ("pool_control_change", "pool_difference", "pool_low", "pool_high", "activity", "control_activity")
FEATURE_EFFECTS = {"target": pl.String, "feature": pl.Int64} | dict.fromkeys(NUMBERS, pl.Float64)
FEATURE_EFFECTS |= {"needed": pl.Boolean, "n": pl.Int64, "rows": pl.Int64, "pool_n": pl.Int64, "pool_rows": pl.Int64}
FEATURE_EFFECTS |= {"fires_in": pl.Int64, "controls": pl.List(pl.Int64)}
OF_TARGET = ("loss_change", "control_change", "difference", "ci_low", "ci_high", "n", "rows")
OF_POOL = ("pool_change", "pool_control_change", "pool_difference", "pool_low", "pool_high", "pool_n", "pool_rows")
JUDGED = ("p_adjusted", "needed")  # columns that hang on all rows
EMPTY = {"feature_effects": pl.DataFrame(schema=FEATURE_EFFECTS)}


@dataclass(frozen=True, eq=False)
class MeasuredTexts:
    """Texts whose losses are asked for: of every target its examples, then rows of the pool; as numbers into `ids`."""

    ids: list[list[int]]
    of_target: list[np.ndarray]
    of_pool: np.ndarray
    groups: np.ndarray  # of every text the cluster that it is in


def check_effects(reader: Reader) -> None:
    """Raise InputError for an autoencoder that does not rebuild the activations that it reads, and for none."""
    sae = reader.sae
    if sae is None or not sae.reconstructs or sae.site_out is not None:
        what = "there is none" if sae is None else f"'{sae.path}' is a transcoder"
        raise InputError(
            f"feature_effects switches features of an autoencoder off where it reads them, and {what}; give another "
            f"sae, or feature_effects=0."
        )


def without_feature(sae: Sae, feature: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """A change of activations [tokens, …]: the same less what the feature contributes to their reconstruction."""

    def change(x: torch.Tensor) -> torch.Tensor:
        rows = sae.encode(x)
        where = rows.row[rows.feature == feature]
        if not len(where):
            return x
        own, frame = x[where], sae.frame
        assert frame is not None  # it has encoded
        place = torch.full((rows.n,), -1, dtype=torch.int64, device=x.device)
        place[where] = torch.arange(len(where), device=x.device)
        inside = place[rows.row] >= 0
        whole = Rows(place[rows.row[inside]], rows.feature[inside], rows.value[inside], len(where), rows.width)
        kept = whole.feature != feature
        less = Rows(whole.row[kept], whole.feature[kept], whole.value[kept], whole.n, whole.width)
        with_it, without = (
            frame.leave(sae.decode(some, own).reshape(own.shape), own.float()) for some in (whole, less)
        )
        new = x.clone()
        new[where] = (own.float() + without - with_it).to(x.dtype)
        return new

    return change


def measured_texts(
    reader: Reader,
    pool: TokenizedSamples,
    frame: pl.DataFrame,
    texts: Sequence[str],
    examples: Mapping[str, TokenizedSamples],
    groups: Mapping[str, np.ndarray],
) -> MeasuredTexts:
    """The examples of every target, whose clusters are `groups`, and `effect_rows` random rows of the pool in which
    something counts; those of at least two tokens."""
    long = np.flatnonzero([counted > 0 and len(ids) > 1 for counted, ids in zip(pool.counted, pool.ids)])
    drawn = reader.context.rng("feature effects").permutation(long)[: reader.config.effect_rows]
    ids, of_target, names = [], [], []
    for name, samples in examples.items():
        own = [k for k, sample in enumerate(samples.ids) if len(sample) > 1]
        of_target.append(len(ids) + np.arange(len(own)))
        ids += samples.lists(own)
        names += [f"{name}\0{groups[name][k]}" for k in own]
    of_pool = len(ids) + np.arange(len(drawn))
    ids += pool.lists(drawn.tolist())
    names += [f"\0{group}" for group in row_groups(frame, texts, np.sort(drawn), reader.context)[drawn]]
    return MeasuredTexts(ids, of_target, of_pool, np.unique(names, return_inverse=True)[1])


def effects(
    reader: Reader, about: MeasuredTexts, prototypes: Prototypes, chosen: Sequence[Sequence[int]]
) -> tuple[dict[str, pl.DataFrame], dict[str, Any]]:
    """Table `feature_effects` of the `chosen` features of every target, and what the summary says."""
    sae = reader.sae
    assert sae is not None  # `check_effects`
    size = sae.inner.W_dec.detach().norm(dim=-1).double()
    activity = [(prototypes.center(t).to(size.device) * size).cpu().numpy() for t in range(len(chosen))]
    controls = [
        {feature: _controls(reader, activity[t], chosen[t], feature, name) for feature in own}
        for t, (own, name) in enumerate(zip(chosen, prototypes.names))
    ]
    needs: dict[int, set[int]] = {}
    for t, own in enumerate(chosen):
        for feature in own:
            for one in (feature, *controls[t][feature]):
                needs.setdefault(int(one), set()).update(about.of_target[t].tolist(), about.of_pool.tolist())
    changes, fires = _changes(reader, about, {feature: sorted(texts) for feature, texts in sorted(needs.items())})
    rows, headline = [], []
    for t, (name, own) in enumerate(zip(prototypes.names, chosen)):
        every = sorted({c for feature in own for c in controls[t][feature]})

        def scaled(feature: int, t: int = t) -> float:
            return float(changes[feature][about.of_target[t]].mean() / activity[t][feature])

        for feature in own:
            beside = controls[t][feature]
            row = {"target": name, "feature": feature, "controls": beside, "activity": activity[t][feature]}
            row |= {"control_activity": float(activity[t][beside].mean()) if beside else np.nan}
            row |= {"fires_in": int(fires[feature][about.of_target[t]].sum())}
            row |= _compared(about, t, changes[feature], [changes[one] for one in beside])
            # no interval, no p: NaN comes first, and stays
            rows.append(row | {"p": max(row["p"], p_by_rank(scaled(feature), np.array([scaled(c) for c in every])))})
        if own and all(len(controls[t][feature]) == reader.config.effect_controls for feature in own):
            texts = about.of_target[t]
            off = [changes[f][texts] - np.stack([changes[c][texts] for c in controls[t][f]]) for f in own]
            headline.append((t, np.mean(off, axis=0)))
    table = pl.DataFrame(rows, schema={key: kind for key, kind in FEATURE_EFFECTS.items() if key not in JUDGED})
    adjusted = false_discovery(table["p"].fill_null(np.nan).to_numpy()) if rows else np.empty(0)
    table = table.with_columns(pl.Series("p_adjusted", adjusted, dtype=pl.Float64))
    table = table.with_columns(needed=(pl.col("p_adjusted").fill_nan(1.0) < LEVEL) & (pl.col("difference") > 0))
    table = table.select(list(FEATURE_EFFECTS)).with_columns(pl.col(NUMBERS).fill_nan(None))
    return {"feature_effects": table}, summary_of(table, headline, about)


def _controls(reader: Reader, activity: np.ndarray, leading: Sequence[int], feature: int, name: str) -> list[int]:
    """Random features of about the same activity (mean activation in the target's examples times the length of the
    decoder's direction), none of which leads the explanation."""
    able = np.setdiff1d(np.flatnonzero(activity > 0), np.asarray(leading))
    if not len(able) or not activity[feature] > 0:
        return []
    many = reader.config.effect_controls
    near = able[np.argsort(np.abs(np.log(activity[able] / activity[feature])), kind="stable")[: NEAREST * many]]
    rng = reader.context.rng(f"feature controls {name} {feature}")
    return sorted(rng.choice(near, min(many, len(near)), replace=False).tolist())


def _changes(
    reader: Reader, about: MeasuredTexts, wanted: Mapping[int, list[int]]
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Of every feature the change in loss of each of its `wanted` texts without it, [texts] (NaN for others), and the
    texts on which it fires, bool [texts]."""
    context, features = reader.context, list(wanted)
    place = {feature: column for column, feature in enumerate(features)}

    def compute_before() -> dict[str, np.ndarray]:
        fires = np.zeros((len(about.ids), len(features)), bool)
        for indices, rows, owner in encoded(reader.model, reader.sae, about.ids, run=reader.run):
            whose, feature = owner[rows.row].cpu().numpy(), rows.feature.cpu().numpy()
            inside = np.isin(feature, features)
            columns = [place[f] for f in feature[inside].tolist()]
            fires[np.asarray(indices)[whose[inside]], columns] = True
        context.count(tokens=sum(map(len, about.ids)), forwards=1)
        return {"loss": _losses(reader, about, range(len(about.ids))), "fires": fires}

    before = context.part("feature effects before", compute_before) if features else {}
    found: dict[int, np.ndarray] = {}
    for start in range(0, len(features), AT_ONCE):
        some = features[start : start + AT_ONCE]

        def compute(some: list[int] = some) -> dict[str, np.ndarray]:
            out = np.full((len(some), len(about.ids)), np.nan)
            for k, feature in enumerate(some):
                out[k, wanted[feature]] = 0.0
                texts = [text for text in wanted[feature] if before["fires"][text, place[feature]]]
                if texts:
                    spare = reader.config.sinks == "leave_out"
                    with spliced(reader.model, reader.site, without_feature(reader.sae, feature), spare_sinks=spare):
                        out[k, texts] = _losses(reader, about, texts) - before["loss"][texts]
            return {"changes": out}

        found |= zip(some, context.part(f"feature effects {start}", compute)["changes"])
        context.progress(min(start + AT_ONCE, len(features)), len(features), "features switched off")
    return found, {feature: before["fires"][:, place[feature]] for feature in features}


def _losses(reader: Reader, about: MeasuredTexts, texts: Sequence[int]) -> np.ndarray:
    """-ln p a token of some texts, in nats, all tokens but the first: [texts] float64."""
    rows = [about.ids[text] for text in texts]
    reader.context.count(tokens=sum(map(len, rows)), forwards=1)
    return np.array([losses.mean() for losses in token_losses(reader.model, rows, run=reader.run)])


def _compared(about: MeasuredTexts, t: int, own: np.ndarray, beside: Sequence[np.ndarray]) -> dict[str, Any]:
    """Columns of one feature, from the changes in loss [texts] without it and without each control."""
    out: dict[str, Any] = {}
    for texts, keys in ((about.of_target[t], OF_TARGET), (about.of_pool, OF_POOL)):
        clusters, change = clusters_of(about.groups[texts]), float(own[texts].mean())
        values = [change, np.nan, np.nan, np.nan, np.nan, clusters.n, len(texts)]
        if len(beside):
            off = own[texts] - np.stack([one[texts] for one in beside])
            ends = crossed_interval(off, clusters)
            values[1:5] = change - off.mean(), off.mean(), *ends
            if texts is about.of_target[t]:
                out["p"] = p_of_difference(off, clusters)
        out |= dict(zip(keys, values))
    return {"p": np.nan} | out


def p_of_difference(values: np.ndarray, clusters: Clusters) -> float:
    """Two-sided p of a mean of zero of values [draws, rows]: the error at which `crossed_interval` just reaches zero,
    so that p and interval say the same. NaN where there is no interval."""
    if clusters.n < FEWEST or len(values) < 2:
        return float("nan")
    if not np.any(values):
        return 1.0
    low, high = 1e-12, 1.0
    for _ in range(30):
        middle = (low * high) ** 0.5
        a, b = crossed_interval(values, clusters, level=1 - middle)
        low, high = (low, middle) if a > 0 or b < 0 else (middle, high)
    return high


def p_by_rank(own: float, controls: np.ndarray) -> float:
    """One-sided p of a feature being one of the controls, from its change in loss for its size and theirs: the share
    of all of them, itself included, that is as large."""
    return float((1 + (controls >= own).sum()) / (1 + len(controls)))


def summary_of(table: pl.DataFrame, headline: Sequence[tuple[int, np.ndarray]], about: MeasuredTexts) -> dict[str, Any]:
    """How many features the model needs, of how many, and of how many the false discovery rate allows that they are so
    by chance; and what switching off a leading feature does more than a control, the mean over features and texts."""
    needed = int(table["needed"].sum())
    out: dict[str, Any] = {"features_switched_off": table.height, "features_needed": needed}
    out["expected_false_needed"] = LEVEL * needed
    if headline:
        values = np.concatenate([off for _, off in headline], axis=1)
        many = [len(off[0]) for _, off in headline]
        targets = np.repeat([t for t, _ in headline], many)
        groups = np.concatenate([about.groups[about.of_target[t]] for t, _ in headline])
        clusters = clusters_of(targets if len(headline) >= FEWEST else groups)
        low, high = crossed_interval(values, clusters)
        found = Estimate(float(values.mean()), float(low), float(high), clusters.n, values.shape[1])
        out["feature_effect_minus_control"] = found.as_dict()
    return out

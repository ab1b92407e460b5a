"""The subnetwork beside the full model, its own complement and random masks: how their surprisals go with the bigrams'
on texts that the search did not read, and what they lose of the next token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from probes.bigram_subnetwork.config import Config
from probes.bigram_subnetwork.correlation import Correlations, correlations, finite, mean_over_draws
from probes.bigram_subnetwork.mask_sets import Masks, kept_by_layer, random_like, without_layer, without_random
from probes.bigram_subnetwork.masked_pass import BigramTask, Readings, readings, surprisals_of_counts, texts_of_tokens
from probes.bigram_subnetwork.stretches import Piece
from workbench.core.context import Context
from workbench.core.errors import RunFailed
from workbench.engine.weight_masks import WeightMask
from workbench.models.block_weights import BlockWeight
from workbench.stats.clusters import clusters_of, crossed_interval, mean_interval

KINDS = ("subnetwork", "full", "random", "complement", "random complement", "unigram")
NONE = (float("nan"), float("nan"))
TOKENS = 2000  # rows of the table `tokens` at most


@dataclass(frozen=True, eq=False)
class Verdicts:
    """What every variant says of the held-out tokens [n]: ``said`` variant → readings, ``known`` the bigrams' surprisal
    [n] where ``kept`` (or its replacement), ``text`` [n]."""

    said: dict[tuple[str, int], Readings]
    known: np.ndarray
    kept: np.ndarray
    text: np.ndarray
    infinite: int


def judge(
    task: BigramTask,
    weights: Sequence[BlockWeight],
    masks: Masks,
    pieces: Sequence[Piece],
    config: Config,
    context: Context,
) -> Verdicts:
    """Passes over the held-out stretches: one for each variant. Those with random masks draw from generators of their
    own, so that each is a part of the run that can be resumed."""
    kept, _ = kept_by_layer(masks, weights, task.model.n_layers)
    layers = [layer for layer in range(task.model.n_layers) if kept[layer]] if config.layer_ablation else []
    variants: list[tuple[str, int, Callable[[np.random.Generator], list[WeightMask]]]] = [
        ("full", 0, lambda rng: []),
        ("subnetwork", 0, lambda rng: [WeightMask.of(masks)]),
        ("complement", 0, lambda rng: [WeightMask.of(masks, remove=True)]),
    ]
    for draw in range(config.random_draws):
        variants += [("random", draw, lambda rng: [WeightMask.of(random_like(masks, rng))])]
        variants += [("random complement", draw, lambda rng: [WeightMask.of(random_like(masks, rng), remove=True)])]
    for layer in layers:
        variants += [
            (f"without layer {layer}", 0, lambda rng, at=layer: [WeightMask.of(without_layer(masks, weights, at))])
        ]
        variants += [
            (
                f"without as many as layer {layer}",
                draw,
                lambda rng, size=int(kept[layer]): [WeightMask.of(without_random(masks, size, rng))],
            )
            for draw in range(config.layer_draws)
        ]
    said = {}
    for number, (kind, draw, made) in enumerate(variants):
        # the same draw of random weights is computed with and left out: what differs is only which
        seeded = "random" if kind.startswith("random") else kind

        def compute(seeded=seeded, draw=draw, made=made) -> dict[str, np.ndarray]:
            found = readings(task, pieces, made(context.rng(f"{seeded} {draw}")))
            context.count(prompts=len(pieces), tokens=sum(len(piece.ids) for piece in pieces), forwards=1)
            return {"surprisal": found.surprisal, "loss": found.loss}

        said[kind, draw] = Readings(**context.part(f"judged {kind} {draw}", compute))
        context.progress(number + 1, len(variants), "variant")
    _check_numbers(task, said, context)
    return _against_counts(task, pieces, said, config)


def _check_numbers(task: BigramTask, said: dict[tuple[str, int], Readings], context: Context) -> None:
    """Raise RunFailed where the full model says NaN, and warn of other variants that do: they have no numbers."""
    broken = [kind for (kind, _), one in said.items() if np.isnan(one.surprisal).any()]
    if "full" in broken:
        raise RunFailed(
            f"The loss of {task.model.name} on held-out texts is NaN; use another dtype (bfloat16 or float32) or check "
            f"its weights."
        )
    if broken:
        context.warn(
            f"{task.model.name} gives NaN with these masks, which have no numbers for that: "
            f"{', '.join(dict.fromkeys(broken))}; use bfloat16 or float32."
        )


def _against_counts(
    task: BigramTask, pieces: Sequence[Piece], said: dict[tuple[str, int], Readings], config: Config
) -> Verdicts:
    known, unigram = surprisals_of_counts(task.bigrams, pieces)
    some = np.isfinite(known)
    said["unigram", 0] = Readings(unigram, np.full(len(unigram), np.nan))
    if config.unseen == "max":
        known, kept = finite(known), np.ones(len(known), bool)
    else:
        kept = some
    return Verdicts(said, known, kept, texts_of_tokens(pieces), int((~some).sum()))


def correlations_of(judged: Verdicts, config: Config, context: Context) -> tuple[list[tuple[str, int]], Correlations]:
    """The variants in an order, and their correlations with the bigrams over the tokens that count."""
    names = list(judged.said)
    said = [judged.said[name].surprisal[judged.kept] for name in names]
    rng = context.rng("texts of the correlations")
    found = correlations(said, judged.known[judged.kept], judged.text[judged.kept], draws=config.draws, rng=rng)
    return names, found


def evaluation_tables(
    judged: Verdicts, masks: Masks, weights: Sequence[BlockWeight], layers: int, config: Config, context: Context
) -> dict[str, pl.DataFrame]:
    """`evaluation`, `draws`, `contrasts`, `layers` and `tokens`."""
    names, found = correlations_of(judged, config, context)
    place = {name: i for i, name in enumerate(names)}
    of_kind = {kind: [place[name] for name in names if name[0] == kind] for kind in dict.fromkeys(n[0] for n in names)}
    rng = context.rng("draws of random masks")
    drawn = {kind: mean_over_draws(found, which, rng) for kind, which in of_kind.items()}
    value = {kind: float(np.mean(found.value[which])) for kind, which in of_kind.items()}
    active = sum(int(mask.sum()) for mask in masks.values())
    total = sum(mask.numel() for mask in masks.values())
    size = {"full": total, "complement": total - active, "random complement": total - active, "unigram": 0}
    rows = [
        {"model": kind, "correlation": value[kind]}
        | dict(zip(("ci_low", "ci_high"), found.interval(drawn[kind])))
        | _means(judged, kind, "loss", "loss")
        | _means(judged, kind, "surprisal", "surprisal")
        | {"active": size.get(kind, active), "draws": len(of_kind[kind])}
        | {"n": found.texts, "tokens": int(judged.kept.sum()), "infinite": judged.infinite}
        for kind in KINDS
    ]
    each = [
        {
            "model": kind,
            "draw": draw,
            "correlation": float(found.value[place[kind, draw]]),
            "loss": float(judged.said[kind, draw].loss.mean()),
            "surprisal": float(finite(judged.said[kind, draw].surprisal).mean()),
        }
        for kind, draw in names
        if kind.startswith("random")
    ]
    return {
        "evaluation": _floats(pl.DataFrame(rows)),
        "draws": _floats(pl.DataFrame(each)),
        "contrasts": _contrasts(judged, found, value, drawn),
        "layers": _layers(judged, found, value, drawn, kept_by_layer(masks, weights, layers), active),
        "tokens": _tokens(judged, context),
    }


def _means(judged: Verdicts, kind: str, measure: str, name: str) -> dict[str, float]:
    """Mean over tokens of all draws of a kind with its interval: texts vary, and draws where there are several."""
    values = np.stack([finite(getattr(one, measure)) for (k, _), one in judged.said.items() if k == kind])
    texts = clusters_of(judged.text)
    if not np.isfinite(values).all():
        return {name: float("nan"), f"{name}_low": float("nan"), f"{name}_high": float("nan")}
    low, high = crossed_interval(values, texts) if len(values) > 1 else mean_interval(values[0], texts)
    return {name: float(values.mean()), f"{name}_low": float(low), f"{name}_high": float(high)}


def _contrasts(judged: Verdicts, found: Correlations, value: dict[str, float], drawn: dict) -> pl.DataFrame:
    """Differences of pairs: of correlations between the subnetwork and what it is held against, and of the next token's
    surprisal between a model without the subnetwork and models without random sets of its size."""
    rows = [
        {"measure": "correlation", "contrast": f"subnetwork - {other}", "value": value["subnetwork"] - value[other]}
        | dict(zip(("ci_low", "ci_high"), found.interval(drawn["subnetwork"] - drawn[other])))
        | {"n": found.texts}
        for other in ("full", "random", "complement", "unigram")
    ]
    texts = clusters_of(judged.text)
    alone = finite(judged.said["complement", 0].surprisal)
    random = [finite(one.surprisal) for (kind, _), one in judged.said.items() if kind == "random complement"]
    gone = np.stack([alone - one for one in random])
    low, high = crossed_interval(gone, texts) if len(gone) > 1 else mean_interval(gone[0], texts)
    ends = {"ci_low": float(low), "ci_high": float(high), "n": len(texts.sizes)}
    ablated = {"measure": "surprisal", "contrast": "complement - random complement", "value": float(gone.mean())}
    return _floats(pl.DataFrame([*rows, ablated | ends]))


def _layers(judged, found: Correlations, value, drawn, sizes: tuple[np.ndarray, np.ndarray], active: int):
    """Of every layer what the subnetwork keeps of it, and how much r falls without that part, beside without as many
    of its weights from anywhere."""
    rows = []
    for layer, (kept, total) in enumerate(zip(*sizes)):
        row = {"layer": layer, "kept": int(kept), "total": int(total), "share": kept / total}
        row |= {"of_subnetwork": kept / active if active else float("nan")}
        row |= dict.fromkeys(("drop", "drop_low", "drop_high", "drop_random"), float("nan"))
        gone, random = f"without layer {layer}", f"without as many as layer {layer}"
        if gone in value:
            row["drop"] = value["subnetwork"] - value[gone]
            row["drop_low"], row["drop_high"] = found.interval(drawn["subnetwork"] - drawn[gone])
            row["drop_random"] = value["subnetwork"] - value[random]
        rows.append(row)
    return _floats(pl.DataFrame(rows))


def _tokens(judged: Verdicts, context: Context) -> pl.DataFrame:
    """Surprisals of some held-out tokens, in nats: of the bigrams, the subnetwork and the full model."""
    n = len(judged.kept)
    some = np.sort(context.rng("tokens of the table").permutation(n)[:TOKENS])
    table = {
        "token": some,
        "row": judged.text[some],
        "bigram": judged.known[some],
        "subnetwork": judged.said["subnetwork", 0].surprisal[some],
        "full": judged.said["full", 0].surprisal[some],
    }
    frame = pl.DataFrame(table, schema_overrides={"token": pl.Int64, "row": pl.Int64})
    return frame.with_columns(pl.when(pl.selectors.float().is_finite()).then(pl.selectors.float()))


def _floats(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(pl.selectors.float().fill_nan(None))


__all__ = ["Verdicts", "correlations_of", "evaluation_tables", "judge"]

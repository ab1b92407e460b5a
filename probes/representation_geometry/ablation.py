"""What the model loses without its top eigen-directions, or with these alone: next-token loss and multiple-choice
accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import torch

from probes.representation_geometry.features import Checkpoint
from probes.representation_geometry.n_grams import Counted, memorisation
from probes.representation_geometry.spectra import Spectrum
from workbench.core.errors import InputError
from workbench.engine.evaluation import Question, final_state_losses, right_choices
from workbench.engine.passes import Pass
from workbench.stats.clusters import clusters_of, crossed_interval, mean_interval, share_interval

NOT_KNOWN = (float("nan"),) * 3
LOSS = ("loss", "ci_low", "ci_high", "draws_low", "draws_high")
ACCURACY = ("accuracy", "accuracy_low", "accuracy_high", "accuracy_draws_low", "accuracy_draws_high")
FLOATS = (*LOSS, *ACCURACY)


def loss_tables(
    checkpoint: Checkpoint, last: Spectrum, counted: Counted | None, questions: Sequence[Question]
) -> dict[str, pl.DataFrame]:
    """`ablation` and `checkpoints`: next-token loss and multiple-choice accuracy, also with eigen-directions of the
    final norm's states (whose spectrum is `last`) removed or kept; and how the loss goes with n-gram probabilities
    (`counted`)."""
    model, context, ids = checkpoint.model, checkpoint.context, checkpoint.texts.ids[: checkpoint.config.loss_rows]
    variants = _variants(checkpoint, last)
    if ids and not any(checkpoint.texts.of_own(row, np.empty(len(own) - 1)).size for row, own in enumerate(ids)):
        raise InputError(
            f"{context.data}: no text has the two tokens that a loss needs; give longer texts, or set loss_rows=0."
        )
    most = min(model.tokens_at_once(checkpoint.config.max_tokens), 4096)
    run = Pass(edits=context.edits, max_tokens=most, check=context.check)
    changes = [(how, directions) for _, how, _, directions in variants]
    losses = final_state_losses(model, ids, changes, run=run) if ids else []
    losses = [checkpoint.texts.of_own(row, loss) for row, loss in enumerate(losses)]
    of_texts = np.array([loss.mean(1) for loss in losses if loss.shape[1]]).T if ids else None  # [variants, texts]
    right = np.asarray(right_choices(model, questions, changes, run=run), np.float64) if questions else None
    context.count(prompts=len(ids), tokens=sum(map(len, ids)))
    rows = []
    for number, (k, how, draw, _) in enumerate(variants):
        row = checkpoint.where | {"k": k, "directions": how, "draw": draw} | dict.fromkeys(FLOATS)
        row["n"] = 0 if of_texts is None else of_texts.shape[1]
        alike = [other for other, one in enumerate(variants) if one[:2] == (k, how)]
        for measure, names, found in (("loss", LOSS, of_texts), ("accuracy", ACCURACY, right)):
            if found is not None:
                row |= dict(zip(names, _estimates(found[number], found[alike], measure)))
        rows.append(row)
    one = dict(zip(("loss", "loss_low", "loss_high"), [rows[0][name] for name in LOSS[:3]]))
    for name, theirs in zip(("memorisation", "memorisation_of_frequency"), _both(counted)):
        theirs = [checkpoint.texts.of_own(row, p) for row, p in enumerate(theirs)]
        found = memorisation(losses, theirs, context) if theirs else NOT_KNOWN
        one |= dict(zip((name, f"{name}_low", f"{name}_high"), found))
    numbers = {"step": pl.Int64} | dict.fromkeys(FLOATS, pl.Float64)
    return {
        "ablation": pl.DataFrame(rows, schema_overrides=numbers),
        "checkpoints": pl.DataFrame(
            [checkpoint.where | one], schema_overrides={"step": pl.Int64} | dict.fromkeys(one, pl.Float64)
        ),
    }


def _estimates(own: np.ndarray, alike: np.ndarray, measure: str) -> tuple[float, ...]:
    """Mean of `own` [texts or questions] with its interval, and that of the mean over the draws `alike` [draws, texts]
    of the same random choice, which are a sample, too."""
    each = clusters_of(np.arange(len(own)))
    low, high = (share_interval if measure == "accuracy" else mean_interval)(own, each)
    return float(own.mean()), float(low), float(high), *map(float, crossed_interval(alike, each))


def _both(counted: Counted | None) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return ([], []) if counted is None else (counted.probabilities, counted.frequencies)


def _variants(checkpoint: Checkpoint, last: Spectrum) -> list[tuple[int, str, int, torch.Tensor | None]]:
    """(k, what is done, draw, directions [k, d]) of every ablation, the model as it is first."""
    config, context = checkpoint.config, checkpoint.context
    generator = torch.Generator().manual_seed(context.torch_seed("random directions"))
    there = min(len(last.directions), int((last.eigenvalues > last.eigenvalues.max(initial=0) * 1e-14).sum()))
    variants: list[tuple[int, str, int, torch.Tensor | None]] = [(0, "none", 0, None)]
    for k in config.ablate:
        if k > there:
            context.warn(
                f"The ablation of the top {k} eigen-directions was left out: {last.n} texts have {there} "
                f"({last.d} dimensions)."
            )
            continue
        variants += [(k, how, 0, last.directions[:k].float()) for how in ("remove", "keep")]
        for draw in range(config.random_draws):
            random = torch.linalg.qr(torch.randn(last.d, k, generator=generator))[0].T
            variants += [(k, how, draw, random) for how in ("remove random", "keep random")]
    return variants

"""What the model loses without its top eigen-directions, or with these alone: next-token loss and multiple-choice
accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import torch

from probes.representation_geometry.features import Checkpoint
from probes.representation_geometry.n_grams import memorisation
from probes.representation_geometry.spectra import Spectrum
from workbench.core.errors import InputError
from workbench.engine.evaluation import Question, final_state_losses, right_choices
from workbench.engine.passes import Pass
from workbench.stats.intervals import bootstrap_mean

NOT_KNOWN = (float("nan"),) * 3
FLOATS = ("loss", "ci_low", "ci_high", "accuracy", "accuracy_low", "accuracy_high")


def loss_tables(
    checkpoint: Checkpoint, last: Spectrum, counted: list[np.ndarray] | None, questions: Sequence[Question]
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
    right = right_choices(model, questions, changes, run=run) if questions else None
    context.count(prompts=len(ids), tokens=sum(map(len, ids)))
    rows = []
    for k, (size, how, draw, _) in enumerate(variants):
        row = checkpoint.where | {"k": size, "directions": how, "draw": draw} | dict.fromkeys(FLOATS) | {"n": len(ids)}
        if ids:
            of_text = np.array([loss[k].mean() for loss in losses if loss.shape[1]])
            low, high = bootstrap_mean(of_text, rng=context.rng("loss"))
            row |= {"loss": float(of_text.mean()), "ci_low": low, "ci_high": high}
        if right is not None:
            low, high = bootstrap_mean(right[k], rng=context.rng("choices"))
            row |= {"accuracy": float(right[k].mean()), "accuracy_low": low, "accuracy_high": high}
        rows.append(row)
    as_it_is = tuple(rows[0][name] for name in ("loss", "ci_low", "ci_high")) if ids else NOT_KNOWN
    memorised = memorisation(losses, counted, context) if counted is not None and ids else NOT_KNOWN
    one = dict(zip(("loss", "loss_low", "loss_high"), as_it_is))
    one |= dict(zip(("memorisation", "memorisation_low", "memorisation_high"), memorised))
    numbers = {"step": pl.Int64} | dict.fromkeys(FLOATS, pl.Float64)
    return {
        "ablation": pl.DataFrame(rows, schema_overrides=numbers),
        "checkpoints": pl.DataFrame([checkpoint.where | one], schema_overrides={"step": pl.Int64}),
    }


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

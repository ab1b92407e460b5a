"""Does news open an output up again? One turn of feedback on an answer, and the answer to it (Yang, Li, Holtzman, TMLR
2026, control with agents).

The three kinds of feedback are written alike and ask for the same; only what stands in one place differs: that the
answer holds (`control`), that it does not (`adversarial`), or letters without meaning (`noise`), as many characters as
the adversarial words, drawn anew for every answer.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl

from probes.branching_factor.begun_outputs import Output
from probes.branching_factor.bf_intervals import mean_ends, paired_mean
from probes.branching_factor.branching_samples import Condition, frame
from probes.branching_factor.conditions import Lab, MeasuredCondition, Studied, bf_of
from probes.branching_factor.config import talk_of
from workbench.core.errors import InputError
from workbench.models.prompt_style import way_of, write_messages
from workbench.stats.clusters import clusters_of, false_discovery, p_of_zero

CONTROL, ADVERSARIAL, NOISE = "control", "adversarial", "noise"
KINDS = (CONTROL, ADVERSARIAL, NOISE)
TURN = "Feedback: {feedback}\n\nPlease answer again."
LETTERS = list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,;:-_")


def feedback(lab: Lab) -> Studied:
    """BF of the answer to each kind of feedback, and what it differs by from that to the control. Raises InputError
    where no answer fits into the model's context with the feedback."""
    first = lab.measure(lab.condition(lab.label(lab.model)))
    answers = _answers(lab, first)
    said = {CONTROL: [lab.config.agree] * len(answers), ADVERSARIAL: [lab.config.disagree] * len(answers)}
    said[NOISE] = _noise(lab, len(answers))
    written = {kind: [_written(lab, first, *one) for one in zip(answers, said[kind])] for kind in KINDS}
    kept = _fitting(lab, first, written)
    found, rows = [first], []
    for kind in KINDS:
        condition = _condition(lab, first, f"after {kind} feedback", [answers[i] for i in kept])
        condition.ids = [written[kind][i][0] for i in kept]
        condition.thinks = any(written[kind][i][1] for i in kept)
        found.append(lab.measure(condition))
        rows.append({"feedback": kind, "condition": condition.name, "said": said[kind][kept[0]]})
    control = bf_of(found[1], lab.config)
    for row, measured in zip(rows, found[1:]):
        row |= _measured_row(measured, bf_of(measured, lab.config), control, row["feedback"] == CONTROL)
        row["samples"] = lab.config.samples
    table = frame({key: [row[key] for row in rows] for key in rows[0]})
    adjusted = false_discovery(table["p"].cast(pl.Float64).fill_null(np.nan).to_numpy())
    table = table.with_columns(frame({"p_adjusted": adjusted}).get_columns())
    pairs = [(measured.condition.name, found[1].condition.name) for measured in found[2:]]
    return found, pairs, {"feedback": table}


def _answers(lab: Lab, first: MeasuredCondition) -> list[tuple[Output, list[int], str]]:
    """(output, ids, text) of the answers that are replied to, without their thinking and what ends them; outputs that
    hold no answer are left out."""
    ends, out = first.condition.model.special_ids, []
    spans = first.thinking()
    for p in range(len(first.lengths)):
        for m in range(min(lab.config.originals, first.lengths.shape[1])):
            if spans[p][m].state == "unfinished":
                continue
            ids = [i for i in first.tokens(p, m)[spans[p][m].end :] if i not in ends]
            if text := first.condition.model.decode(ids).strip():
                out.append(((p, m), ids, text))
    if not out:
        raise InputError(f"No output of {lab.model.name} holds an answer that could be replied to.")
    return out


def _noise(lab: Lab, count: int) -> list[str]:
    """Letters without meaning, one text for every answer."""
    rng = lab.context.rng("noise of the feedback")
    return ["".join(rng.choice(LETTERS, size=len(lab.config.disagree))) for _ in range(count)]


def _written(
    lab: Lab, first: MeasuredCondition, answer: tuple[Output, list[int], str], said: str
) -> tuple[list[int], bool]:
    """What the model is given: the talk so far and the feedback, in its chat template where its prompts are in one;
    and whether it then begins inside a block of thinking."""
    (p, _), ids, text = answer
    model, turn = first.condition.model, TURN.format(feedback=said)
    style = lab.style(model)
    if way_of(model, style) == "raw":
        return [*first.condition.ids[p], *ids, *model.encode(f"\n\n{turn}\n\n", bos=False)], False
    row = lab.table.row(p, named=True)
    turns = [*(talk_of(row) or [("user", row["prompt"])]), ("assistant", text), ("user", turn)]
    written = write_messages(model, turns, style=style, answer=True)
    return written.ids, written.thinks


def _fitting(lab: Lab, first: MeasuredCondition, written: dict[str, list[tuple[list[int], bool]]]) -> list[int]:
    """The answers after which all three kinds of feedback leave room for a token."""
    limit, lengths = first.condition.model.context_length, []
    for own in zip(*written.values()):
        lengths.append(max(len(ids) for ids, _ in own))
    kept = [i for i, length in enumerate(lengths) if limit is None or length < limit]
    if not kept:
        raise InputError(
            f"No answer of {lab.model.name} fits into its context ({limit} tokens) with the feedback; use shorter "
            f"prompts or a smaller max_new_tokens."
        )
    if len(kept) < len(lengths):
        lab.context.warn(
            f"{len(lengths) - len(kept)} of {len(lengths)} answers do not fit into the context of {lab.model.name} "
            f"with the feedback and are left out."
        )
    return kept


def _condition(lab: Lab, first: MeasuredCondition, name: str, answers: list) -> Condition:
    """The condition of these answers, whose ids are still those of the prompts."""
    condition, prompts = (
        lab.condition(name, first.condition.model, stream="after feedback"),
        [p for (p, _), *_ in answers],
    )
    taken = lambda values: [values[p] for p in prompts]  # noqa: E731
    answers_of = None if condition.answers is None else taken(condition.answers)
    taken_in = {key: taken(getattr(condition, key)) for key in ("texts", "ids", "prompt", "cluster")}
    return replace(condition, answers=answers_of, **taken_in)


def _measured_row(measured: MeasuredCondition, values: np.ndarray, control: np.ndarray, is_control: bool) -> dict:
    names = measured.condition.cluster
    low, high = mean_ends(values, names)
    apart = np.full(len(values), np.nan) if is_control else values - control
    of, known = paired_mean(apart, names), np.isfinite(apart)
    p = float(p_of_zero(apart[known], clusters_of(np.asarray(names)[known]))) if known.any() else np.nan
    return {
        "bf": float(np.nanmean(values)),
        "ci_low": low,
        "ci_high": high,
        "difference": of.value,
        "difference_low": of.low,
        "difference_high": of.high,
        "p": p,
        "prompts": len(set(names)),
        "rows": len(names),
    }

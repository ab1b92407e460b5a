"""Which sentences of an output decide its answer (Bogdan et al., Thought Anchors, arXiv 2506.19143, counterfactual
importance).

An output is cut before each of its sentences and sampled again from there. The answers of the samples that go on after
sentence i are those with it; the samples from before it begin with another sentence, or say the same again, and the
answers of the former are those without it. The importance of sentence i is KL(without ‖ with).

The paper leaves out new sentences that mean the same, by their embeddings; there is no embedding model here, so those
are left out that share their words (`similar`: at least so large a part of all words of the two). A sentence said again
in other words counts as another one. What so few samples would show without any difference is the control: the answers
of both sides dealt out anew.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from probes.branching_factor.answer_shift import answer_shift
from probes.branching_factor.begun_outputs import Output, begun, outputs_longer_than
from probes.branching_factor.bf_intervals import paired_mean
from probes.branching_factor.branching_samples import correct, frame
from probes.branching_factor.conditions import Lab, MeasuredCondition, Studied
from probes.branching_factor.final_answers import final_answer
from probes.branching_factor.sentences import sentence_splitter
from workbench.core.errors import InputError
from workbench.stats.clusters import FEWEST, clusters_of, false_discovery, p_of_zero

LEAST = FEWEST  # samples with another sentence, below which a sentence has no importance
APART = 0.1  # nats: a sentence is called an anchor where it lies so far above its null, and is told from it


@dataclass(frozen=True, eq=False)
class Resampled:
    """The samples of one output from before one of its sentences, [M]: their first sentences, their answers, and
    whether these are right (NaN where that is not known)."""

    begins: list[str]
    answers: list[str]
    right: np.ndarray


def sentence_importance(lab: Lab) -> Studied:
    """Cut outputs before each sentence, sample them again, and hold the answers with a sentence against those without
    it. Raises InputError where no output has two sentences."""
    first = lab.measure(lab.condition(lab.label(lab.model)))
    starts = sentence_starts(first, outputs_longer_than(first, 0, lab.config.originals))
    starts = {output: own[: lab.config.max_sentences + 1] for output, own in starts.items() if len(own) > 1}
    if not starts:
        raise InputError(
            f"No output of {lab.model.name} has two sentences, so none has a sentence that an answer follows; raise "
            f"max_new_tokens or ask for more."
        )
    found, again = [first], {}
    for i in range(max(map(len, starts.values()))):
        outputs = [output for output, own in starts.items() if len(own) > i]
        given = [first.tokens(*output)[: starts[output][i]] for output in outputs]
        name = f"before sentence {i}"
        found.append(lab.measure(begun(lab, name, first, outputs, given, stream=name)))
        again |= {(output, i): one for output, one in zip(outputs, _resampled(_cut_alike(found[-1], lab), lab))}
    table = importance_table(first, starts, again, lab)
    cluster_of = dict(zip(first.condition.prompt, first.condition.cluster))
    return found, [], {"sentence_importance": table, "sentence_means": means_table(table, cluster_of)}


def sentence_starts(found: MeasuredCondition, outputs: Sequence[Output]) -> dict[Output, list[int]]:
    """The token with which each sentence of an output begins."""
    split, spans = sentence_splitter(found.condition.model), found.thinking()
    out = {}
    for p, m in outputs:
        numbers = split(found.tokens(p, m), spans[p][m].end)
        out[p, m] = [numbers.index(k) for k in range(max(numbers) + 1)]
    return out


def _cut_alike(found: MeasuredCondition, lab: Lab) -> MeasuredCondition:
    """The same samples, ended where the whole output has max_new_tokens, what was given included: else those that are
    cut later could say more, and answers would differ for that."""
    model, (P, M) = found.condition.model, found.lengths.shape
    room = np.array([[max(lab.config.max_new_tokens - len(given), 0)] for given in found.condition.given])
    cut = replace(found, lengths=np.minimum(found.lengths, room))
    return replace(cut, texts=[[model.decode(cut.tokens(p, m)) for m in range(M)] for p in range(P)])


def _resampled(found: MeasuredCondition, lab: Lab) -> list[Resampled]:
    """The samples of every row of a condition."""
    model, M = found.condition.model, found.lengths.shape[1]
    split, spans = sentence_splitter(model), found.thinking()
    right = correct(found) if found.condition.answers else np.full(found.lengths.shape, np.nan)
    by_right, out = _counts_right(lab), []
    for p in range(len(found.lengths)):
        begins, answers = [], []
        for m in range(M):
            ids, span = found.tokens(p, m), spans[p][m]
            begins.append(model.decode([i for i, k in zip(ids, split(ids, span.end)) if k == 0]).strip())
            if by_right:
                answers.append(str(right[p, m]))
                continue
            whole = ids[span.end :] if span.state != "none" and span.end else [*found.condition.given[p], *ids]
            answers.append("" if span.state == "unfinished" else final_answer(model.decode(whole)))
        out.append(Resampled(begins, answers, right[p]))
    return out


def _counts_right(lab: Lab) -> bool:
    """Whether an answer is that the output is right, or is not; else it is the final answer in words."""
    if lab.config.answers != "auto":
        return lab.config.answers == "right"
    return "answer" in lab.table.columns and any((answer or "").strip() for answer in lab.table["answer"])


def shared_words(one: str, other: str) -> float:
    """How many of the different words of two sentences both have, as a share; 1 where neither has any."""
    first, second = (set(re.findall(r"\w+", text.lower())) for text in (one, other))
    return len(first & second) / len(first | second) if first | second else 1.0


def importance_table(
    first: MeasuredCondition, starts: dict[Output, list[int]], again: dict[tuple[Output, int], Resampled], lab: Lab
) -> pl.DataFrame:
    """One row per output and sentence that another sentence follows."""
    rows, condition = [], first.condition
    for (p, m), own in starts.items():
        ids = first.tokens(p, m)
        for i in range(len(own) - 1):
            text = condition.model.decode(ids[own[i] : own[i + 1]]).strip()
            where = {"prompt": condition.prompt[p], "sample": m, "sentence": i, "text": text, "position": own[i]}
            rng = lab.context.rng(f"answers dealt out anew/{condition.prompt[p]}/{m}/{i}")
            rows.append(where | importance_row(text, again[(p, m), i], again[(p, m), i + 1], lab.config.similar, rng))
    table = frame({key: [row[key] for row in rows] for key in rows[0]})
    adjusted = false_discovery(table["p"].cast(pl.Float64).fill_null(np.nan).to_numpy())
    table = table.with_columns(frame({"p_adjusted": adjusted})["p_adjusted"].cast(pl.Float64))
    told = (pl.col("p_adjusted") < 0.05) & (pl.col("excess") >= APART)
    return table.with_columns(pl.when(pl.col("p").is_not_null()).then(told).alias("anchor"))


def importance_row(
    sentence: str, before: Resampled, after: Resampled, similar: float, rng: np.random.Generator
) -> dict[str, float]:
    """The numbers of one sentence, from the samples ``before`` it and those ``after`` it."""
    other = np.array([shared_words(sentence, said) < similar for said in before.begins])
    without = [answer for answer, new in zip(before.answers, other) if new]
    known = "nan" not in {*before.answers, *after.answers}  # right or wrong, and nothing says which
    enough = known and len(without) >= LEAST
    shift = answer_shift(without if enough else [], after.answers, rng)
    whole = answer_shift(before.answers if known else [], after.answers, rng)
    right = float(before.right[other].mean()) if enough else np.nan
    return {
        "importance": shift.value,
        "importance_null": shift.null,
        "excess": shift.value - shift.null,
        "p": shift.p,
        "importance_resampled": whole.value,
        "resampled_null": whole.null,
        "accuracy_without": right,
        "accuracy_with": float(after.right.mean()),
        "accuracy_change": float(after.right.mean()) - right,
        "replaced": int(other.sum()),
        "samples": len(other),
    }


def means_table(table: pl.DataFrame, cluster_of: Mapping[int, int]) -> pl.DataFrame:
    """One row for all sentences together (sentence null) and one per sentence number: means over outputs, with t over
    prompts; ``cluster_of``: which cluster a prompt of the table is of."""
    numbers = table["sentence"].unique().sort().to_list()
    rows = [{"sentence": None} | _means(table, cluster_of)]
    rows += [{"sentence": number} | _means(table.filter(sentence=number), cluster_of) for number in numbers]
    made = frame({key: [row[key] for row in rows] for key in rows[0]})
    return made.with_columns(pl.col("sentence").cast(pl.Int64))


def _means(table: pl.DataFrame, cluster_of: Mapping[int, int]) -> dict:
    names = [cluster_of[prompt] for prompt in table["prompt"]]
    columns = ("importance", "importance_null", "excess", "accuracy_change")
    value = {name: table[name].cast(pl.Float64).fill_null(np.nan).to_numpy() for name in columns}
    excess, change = paired_mean(value["excess"], names), paired_mean(value["accuracy_change"], names)
    known = np.isfinite(value["excess"])
    p = float(p_of_zero(value["excess"][known], clusters_of(np.asarray(names)[known]))) if known.any() else np.nan
    return {
        "importance": float(value["importance"][known].mean()) if known.any() else np.nan,
        "importance_null": float(value["importance_null"][known].mean()) if known.any() else np.nan,
        "excess": excess.value,
        "excess_low": excess.low,
        "excess_high": excess.high,
        "p": p,
        "accuracy_change": change.value,
        "change_low": change.low,
        "change_high": change.high,
        "replaced": float((table["replaced"].to_numpy() / table["samples"].to_numpy()).mean()),
        "anchors": int(table["anchor"].sum()),
        "prompts": excess.n,
        "rows": excess.rows,
    }

"""Does an output narrow because of what the model has written itself? Random tokens put into it (Yang, Li, Holtzman,
TMLR 2026, control with random prefixes).

Of every output the first t tokens are kept. Then come tokens of one kind, and the model goes on: `own`, the tokens that
it wrote there itself; `shuffled`, the same in a random order; `random`, so many of its vocabulary, all alike,
drawn anew for every output; or nothing. Outputs that end before the inserted tokens do are left out of all four,
so that all of them are of the same outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from probes.branching_factor.begun_outputs import Output, begun, outputs_longer_than
from probes.branching_factor.bf_intervals import mean_ends, paired_mean
from probes.branching_factor.branching_samples import frame
from probes.branching_factor.conditions import Lab, MeasuredCondition, Studied, bf_of
from probes.branching_factor.config import Config
from workbench.core.errors import InputError
from workbench.models.model import Model
from workbench.stats.clusters import clusters_of, false_discovery, p_of_zero

NOTHING, OWN, SHUFFLED, RANDOM = "nothing", "own", "shuffled", "random"
KINDS = (NOTHING, OWN, SHUFFLED, RANDOM)


def random_prefix(lab: Lab) -> Studied:
    """BF of what follows tokens of each kind at each offset, and what it differs by from what follows nothing and the
    model's own tokens. Raises InputError where no output is long enough for any offset."""
    first = lab.measure(lab.condition(lab.label(lab.model)))
    found, pairs, rows, width = [first], [], [], lab.config.inserted
    for t in sorted(set(lab.config.offsets)):
        outputs = outputs_longer_than(first, t + width, lab.config.originals)
        if not outputs:
            lab.context.warn(
                f"No output is longer than {t + width} tokens, so nothing was inserted at {t}; take a smaller offset, "
                f"fewer inserted tokens or more max_new_tokens."
            )
            continue
        given = inserted_tokens(lab, first, outputs, t)
        of_kind = {
            kind: lab.measure(begun(lab, f"{kind} at {t}", first, outputs, ids, stream=f"inserted at {t}"))
            for kind, ids in given.items()
        }
        found += of_kind.values()
        pairs += [(f"{kind} at {t}", f"{OWN} at {t}") for kind in KINDS if kind != OWN]
        rows += _rows(of_kind, t, width, lab.config)
    if not rows:
        raise InputError(
            f"No output is longer than {min(lab.config.offsets) + width} tokens, so nothing could be inserted at any "
            f"offset; lower offsets or inserted, or raise max_new_tokens."
        )
    table = frame({key: [row[key] for row in rows] for key in rows[0]})
    for name in ("p", "p_nothing"):
        adjusted = false_discovery(table[name].cast(pl.Float64).fill_null(np.nan).to_numpy())
        table = table.with_columns(frame({f"{name}_adjusted": adjusted}).get_columns())
    return found, pairs, {"random_prefix": table}


def inserted_tokens(
    lab: Lab, first: MeasuredCondition, outputs: Sequence[Output], offset: int
) -> dict[str, list[list[int]]]:
    """For each kind, what every output [rows] is given: its first ``offset`` tokens, and what is inserted there."""
    width, rng = lab.config.inserted, lab.context.rng(f"inserted at {offset}")
    pool = np.array(plain_tokens(first.condition.model))
    given: dict[str, list[list[int]]] = {kind: [] for kind in KINDS}
    for p, m in outputs:
        ids = first.tokens(p, m)
        kept, own = ids[:offset], ids[offset : offset + width]
        given[NOTHING].append(kept)
        given[OWN].append(kept + own)
        given[SHUFFLED].append(kept + rng.permutation(own).tolist())
        given[RANDOM].append(kept + rng.choice(pool, size=width).tolist())
    return given


def plain_tokens(model: Model) -> list[int]:
    """The ids that stand for text: no special and no added tokens."""
    apart = set(model.special_ids) | set(model.tokenizer.get_added_vocab().values())
    return sorted(i for i in set(model.tokenizer.get_vocab().values()) - apart if i < model.vocab_size)


def _rows(of_kind: dict[str, MeasuredCondition], offset: int, width: int, config: Config) -> list[dict]:
    """A row per kind: its BF, and what it differs by from the model's own tokens and from nothing, prompt by prompt."""
    values = {kind: bf_of(measured, config) for kind, measured in of_kind.items()}
    rows = []
    for kind, measured in of_kind.items():
        names = measured.condition.cluster
        low, high = mean_ends(values[kind], names)
        row = {"offset": offset, "inserted": kind, "condition": measured.condition.name}
        row |= {"tokens": 0 if kind == NOTHING else width, "bf": float(np.nanmean(values[kind]))}
        row |= {"ci_low": low, "ci_high": high}
        for end, other in (("", OWN), ("_nothing", NOTHING)):
            apart = values[kind] - values[other]
            of = paired_mean(apart if kind != other else np.full(len(apart), np.nan), names)
            row |= {f"difference{end}": of.value, f"difference{end}_low": of.low, f"difference{end}_high": of.high}
            row[f"p{end}"] = np.nan if kind == other else _p(apart, names)
        rows.append(row | {"prompts": len(set(names)), "rows": len(names), "samples": config.samples})
    return rows


def _p(values: np.ndarray, names: Sequence[int]) -> float:
    known = np.isfinite(values)
    return float(p_of_zero(values[known], clusters_of(np.asarray(names)[known]))) if known.any() else np.nan

"""The few numbers of a run that a person would quote."""

from __future__ import annotations

import numpy as np
import polars as pl

from probes.branching_factor.cohort import UNIT
from probes.branching_factor.config import Config
from probes.branching_factor.estimators import enough_samples
from workbench.stats.clusters import cluster_mean, cluster_share

QUOTED = 8  # of the sentences
PER_TOKEN = "per token, other tokenizer"  # what stands beside a number that must not be compared as it is


def summary_of(tables: dict[str, pl.DataFrame], config: Config) -> dict:
    """Values with their intervals, n the number of prompts. Where conditions are of models with different tokenizers,
    nats per byte come first and what is per token says so."""
    conditions = tables["conditions"]
    first = conditions.row(0, named=True)
    out = _compared(tables, other=True)
    out |= {"bf": quoted(first, "bf", "ci")}
    names = ("bf_entropy", "bf_nll", "bf_compat", "exp_entropy_untruncated", "bf_late")
    out |= {name: first[name] for name in names}
    out |= {"nats_per_byte": quoted(first, "nats_per_byte", "nats_per_byte"), "mean_length": first["mean_length"]}
    how = {"estimator": config.estimator, "bias": config.bias, "samples": config.samples}
    out |= how | {"template": first["template"]} | _course(first)
    more = tables["enough"].filter(pl.col("condition") == first["condition"])
    if more["relative_error"].is_not_null().any():
        out["samples_for_5_percent"] = enough_samples(more.rows(named=True)) or f"more than {config.samples}"
    for row in conditions.iter_rows(named=True):
        if row["condition"] != first["condition"]:
            other = row["tokenizer"] != first["tokenizer"]
            if other:
                out[f"nats_per_byte of {row['condition']}"] = quoted(row, "nats_per_byte", "nats_per_byte")
            out[f"bf of {row['condition']}" + f" ({PER_TOKEN})" * other] = quoted(row, "bf", "ci")
    out |= _compared(tables, other=False) | _segments(tables, config, first["condition"]) | _of_study(tables)
    out |= _forking(tables) if "forking" in tables else {}
    return {key: value for key, value in out.items() if value is not None}


def _compared(tables: dict[str, pl.DataFrame], *, other: bool) -> dict:
    """The comparisons of conditions whose tokenizers differ (``other``), or of those that share one."""
    out = {}
    for row in tables["comparisons"].iter_rows(named=True) if "comparisons" in tables else ():
        name = f"{row['a']} / {row['b']}"
        if other and not row["same_tokenizer"]:
            out[f"{name}, nats per byte"] = quoted(row, "per_byte_ratio", "per_byte_ratio")
            out[f"{name} ({PER_TOKEN})"] = quoted(row, "ratio", "ratio")
        elif not other and row["same_tokenizer"]:
            out[name] = quoted(row, "ratio", "ratio")
    return out


def _course(row: dict) -> dict:
    """Whether BF falls or rises along the output, over the cohort."""
    found = {"course": row["course"]}
    if row["slope"] is not None:
        slope = quoted(row, "slope", "slope") | {"n": row["cohort_prompts"]}
        slope.pop("rows", None)
        found |= {f"slope of log bf per {UNIT} tokens": slope, "cohort_tokens": row["cohort_tokens"]}
    return found


def _segments(tables: dict[str, pl.DataFrame], config: Config, condition: str) -> dict:
    out = {}
    if "segment_means" in tables:
        means = tables["segment_means"].filter(pl.col("condition") == condition)
        kind = "sentence " if config.segments == "sentence" else ""
        for row in means.head(QUOTED).iter_rows(named=True):
            if row["bf"] is not None:
                out[f"bf of {kind}{row['segment']}"] = quoted(row, "bf", "ci")
    if tables["segments"].height and config.segments == "thinking":
        samples = tables["samples"].filter(pl.col("condition") == condition)
        out["samples_ended_in_thinking"] = int((samples["thinking"] == "unfinished").sum())
    return out


def _forking(tables: dict[str, pl.DataFrame]) -> dict:
    """Of the first condition: how much of the entropy the forking steps hold, and which tokens fork."""
    row = tables["forking"].row(0, named=True)
    tokens = tables["forking_tokens"].filter(pl.col("condition") == row["condition"], pl.col("forking"))
    named = tokens.sort("ci_low", "count", descending=True)["token"].head(QUOTED).to_list()
    return {
        "share of steps that fork": row["forking"],
        "share of the entropy that they hold": quoted(row, "entropy_held", "held"),
        "tokens that fork more often than expected": f"{row['tokens_forking']} of {row['tokens_tested']} tested",
        "tokens that fork": ", ".join(map(repr, named)) or "—, none told from shuffled places",
    }


def _of_study(tables: dict[str, pl.DataFrame]) -> dict:
    """What the tables of the studies say in a few numbers."""
    out = {}
    for row in tables["resampling"].iter_rows(named=True) if "resampling" in tables else ():
        of = row | {"rows": row["outputs"]}
        out[f"accuracy, cut at {row['position']}"] = quoted(of, "accuracy", "ci")
        if row["position"]:
            out[f"drop, cut at {row['position']}"] = quoted(of, "drop", "drop")
    for row in tables["impact"].iter_rows(named=True) if "impact" in tables else ():
        out[f"impact of {row['factor']}"] = quoted(row, "impact_held_out", "impact")
        out[f"impact of {row['factor']}, as the paper has it"] = row["impact"]
        out[f"impact of {row['factor']}, levels shuffled"] = row["impact_null"]
    for row in tables["signature"].iter_rows(named=True) if "signature" in tables else ():
        for key in ("entropy_own", "nll_given", "surprise"):
            out[f"{key} of {row['condition']}"] = quoted(row, key, key)
    return out | _controls(tables) | (_verbalised(tables) if "verbalised" in tables else {})


def _controls(tables: dict[str, pl.DataFrame]) -> dict:
    """What random tokens in an output, or feedback on an answer, change."""
    out = {}
    for row in tables["random_prefix"].iter_rows(named=True) if "random_prefix" in tables else ():
        if row["inserted"] in ("shuffled", "random"):
            name = f"bf after {row['inserted']} tokens at {row['offset']}, less that after its own"
            out[name] = quoted(row, "difference", "difference") | {"p_adjusted": row["p_adjusted"]}
    for row in tables["feedback"].iter_rows(named=True) if "feedback" in tables else ():
        if row["feedback"] != "control":
            name = f"bf after {row['feedback']} feedback, less that after the control"
            out[name] = quoted(row, "difference", "difference") | {"p_adjusted": row["p_adjusted"]}
    if "sentence_means" in tables:
        row = tables["sentence_means"].row(0, named=True)  # of all sentences
        tested = tables["sentence_importance"]["p"].count()
        out["importance of a sentence, less that of answers dealt out anew"] = quoted(row, "excess", "excess")
        out["importance of answers dealt out anew"] = row["importance_null"]
        out["sentences that decide the answer"] = f"{row['anchors']} of {tested} tested"
        if row["accuracy_change"] is not None:
            out["accuracy with a sentence, less that without it"] = quoted(row, "accuracy_change", "change")
    return out


def _verbalised(tables: dict[str, pl.DataFrame]) -> dict:
    direct = tables["prompts"].filter(pl.col("condition") == "direct").select("prompt", words="text")
    table, out = tables["verbalised"].join(direct, on="prompt", how="left"), {}
    for key in ("parse_rate", "distinct_direct", "distinct_verbalised", "effective_stated"):
        known = table.drop_nulls(key)
        if known.height:
            of = cluster_mean if key == "effective_stated" else cluster_share
            out[key] = of(known[key].to_numpy(), known["words"].to_numpy()).as_dict()
    return {key: {name: _plain(v) for name, v in value.items()} for key, value in out.items()}


def quoted(row: dict, value: str, ends: str) -> dict:
    """A value of a row with its interval, how many prompts it rests on, and how many rows where these are more."""
    found = {"value": row[value], "low": row[f"{ends}_low"], "high": row[f"{ends}_high"]}
    found |= {"n": row["prompts"]} if "prompts" in row else {}
    return found | ({"rows": row["rows"]} if row.get("rows", row.get("prompts")) != row.get("prompts") else {})


def _plain(value: float) -> float | None:
    return None if isinstance(value, float) and np.isnan(value) else value

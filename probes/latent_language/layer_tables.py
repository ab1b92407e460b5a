"""The tables of the layers: how probable each language's words are, which language leads, where the target overtakes
the others, and the area under each curve."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl

from probes.latent_language.config import READOUTS, Config
from probes.latent_language.measuring import NAMES, NULL, OWN, Found
from probes.latent_language.questions import LanguageTask
from workbench.core.context import Context
from workbench.stats.clusters import FEWEST, clusters_of, false_discovery, mean_interval, p_of_zero, share_interval
from workbench.stats.intervals import percentiles, resample_counts

LAYERS = {
    "task": pl.String,
    "source": pl.String,
    "target": pl.String,
    "lens": pl.String,
    "readout": pl.String,
    "layer": pl.Int64,
    "language": pl.String,
    **dict.fromkeys(("probability", "ci_low", "ci_high", "entropy", "mean_log_p"), pl.Float64),
    **dict.fromkeys(("null_probability", "excess", "excess_low", "excess_high", "p", "p_adjusted"), pl.Float64),
    "above_null": pl.Boolean,
    "leads": pl.Boolean,
    "lead_share": pl.Float64,
    "n": pl.Int64,
    "rows": pl.Int64,
}
COURSES = {
    **{name: pl.String for name in ("task", "source", "target", "lens", "readout", "language")},
    **dict.fromkeys(("area", "area_low", "area_high", "area_null"), pl.Float64),
    "layers_led": pl.Int64,
    "peak_layer": pl.Int64,
    "crossing": pl.Int64,
    **dict.fromkeys(("crossing_low", "crossing_high", "crossing_relative", "crossing_share"), pl.Float64),
    "n": pl.Int64,
    "rows": pl.Int64,
}
RATE = 0.05


def layer_tables(
    task: LanguageTask, found: Found, names: np.ndarray, languages: Sequence[str], config: Config, context: Context
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The tables `layers` and `courses` of one task; `names` [prompts]: the cluster (concept, or group) of each."""
    layers, courses = [], []
    for lens_number, lens in enumerate(config.lenses):
        entropy = found["entropy"][:, lens_number].mean(0)
        for readout_number, readout in enumerate(READOUTS):
            log_p = found["log_p"][:, :, readout_number, :, lens_number].astype(np.float64)  # [n, 2, G, layers]
            where = {"task": task.name, "source": task.source, "target": task.target, "lens": lens, "readout": readout}
            rng = context.rng(f"leads {task.key} {lens} {readout}")
            leads = _Leads(log_p[:, OWN], names, config.draws, rng)
            for g, language in enumerate(languages):
                own, null = log_p[:, OWN, g], log_p[:, NULL, g]
                layers.append(_rows(where | {"language": language}, own, null, names, entropy, leads, g))
            courses += list(_courses(where, log_p, names, languages, leads))
            if readout == "set" and config.shared == "report":
                for k, name in enumerate(NAMES):
                    own = found["several"][:, k, lens_number].astype(np.float64)
                    layers.append(_rows(where | {"language": name}, own, np.full_like(own, np.nan), names, entropy))
    together = pl.concat([frame for frame in layers if frame.height])
    return _adjusted(together), pl.DataFrame(courses, schema=COURSES)


class _Leads:
    """Mean probabilities [languages, layers], and the same in resamples of the clusters [draws, languages, layers],
    each over the prompts in which there is something of the language to look for."""

    def __init__(self, log_p: np.ndarray, names: np.ndarray, draws: int, rng: np.random.Generator):
        there = ~np.isnan(log_p[:, :, 0])  # [n, G]
        p = np.where(there[..., None], np.exp(log_p), 0.0)
        self.n = len(np.unique(names))
        self.drawn: np.ndarray | None = None
        with np.errstate(invalid="ignore", divide="ignore"):
            self.mean = p.sum(0) / there.sum(0)[:, None]
            if self.n >= FEWEST:
                counts = resample_counts(len(names), draws, rng, clusters=names)
                self.drawn = np.einsum("dn,ngl->dgl", counts, p) / (counts @ there)[..., None]

    def is_lead(self, g: int) -> np.ndarray:
        """[layers]: whether a language is the most probable one."""
        return _first(self.mean[None])[0] == g

    def lead_share(self, g: int) -> np.ndarray:
        """[layers]: in what share of the resamples it is; NaN without an interval."""
        if self.drawn is None:
            return np.full(self.mean.shape[1], np.nan)
        return (_first(self.drawn) == g).mean(0)


def _first(mean: np.ndarray) -> np.ndarray:
    """The language [draws, layers] with the largest mean [draws, languages, layers]; −1 where there is none."""
    known = np.where(np.isnan(mean), -np.inf, mean)
    return np.where(np.isfinite(known).any(1), known.argmax(1), -1)


def _rows(
    where: dict,
    own: np.ndarray,
    null: np.ndarray,
    names: np.ndarray,
    entropy: np.ndarray,
    leads: _Leads | None = None,
    g: int = -1,
) -> pl.DataFrame:
    """A row for each layer, of log-probabilities [n, layers] that are NaN where there is nothing to look for."""
    there = ~np.isnan(own[:, 0])
    depth = own.shape[1]
    if not there.any():
        return pl.DataFrame(schema=LAYERS)
    p, clusters = np.exp(own[there]), clusters_of(names[there])
    low, high = share_interval(p, clusters)
    columns = {
        **{name: [value] * depth for name, value in where.items()},
        "layer": range(depth),
        "probability": p.mean(0),
        "ci_low": low,
        "ci_high": high,
        "entropy": entropy.astype(np.float64),
        "mean_log_p": own[there].mean(0),
        "n": [clusters.n] * depth,
        "rows": [clusters.rows] * depth,
    }
    both = there & ~np.isnan(null[:, 0])
    if both.any():
        beside, mine = np.exp(null[both]), np.exp(own[both])
        pairs = clusters_of(names[both])
        low, high = mean_interval(mine - beside, pairs)
        columns |= {"null_probability": beside.mean(0), "excess": (mine - beside).mean(0)}
        columns |= {"excess_low": low, "excess_high": high, "p": p_of_zero(mine - beside, pairs)}
    if leads is not None:
        columns |= {"leads": leads.is_lead(g), "lead_share": leads.lead_share(g)}
    return _filled(columns, LAYERS)


def _filled(columns: dict, schema: dict) -> pl.DataFrame:
    """The columns in the order of a schema, null where there is none and where a number is none."""
    height = len(columns["layer"])
    frame = pl.DataFrame(
        [
            pl.Series(name, list(columns[name]) if name in columns else [None] * height, dtype=kind, strict=False)
            for name, kind in schema.items()
        ]
    )
    return frame.with_columns(pl.selectors.float().fill_nan(None))


def _adjusted(frame: pl.DataFrame) -> pl.DataFrame:
    """p adjusted over the layers and languages of each read-out, and which are above their null by it."""
    parts = []
    for part in frame.partition_by("lens", "readout", maintain_order=True):
        p = part["p"].cast(pl.Float64).fill_null(np.nan).to_numpy()
        adjusted = pl.Series("p_adjusted", false_discovery(p)).fill_nan(None)
        above = (adjusted < RATE) & (part["excess"] > 0)
        parts.append(part.with_columns(adjusted, above.alias("above_null")))
    return pl.concat(parts)


def _courses(
    where: dict, log_p: np.ndarray, names: np.ndarray, languages: Sequence[str], leads: _Leads
) -> Iterator[dict]:
    """A row for each language that has words: its area, the layers that it leads, and where the target overtakes it."""
    target = languages.index(where["target"])
    led = [int(leads.is_lead(g).sum()) for g in range(len(languages))]
    for g, language in enumerate(languages):
        own, null = log_p[:, OWN, g], log_p[:, NULL, g]
        there = ~np.isnan(own[:, 0])
        if not there.any():
            continue
        area, clusters = np.exp(own[there]).mean(1), clusters_of(names[there])
        low, high = (float(end) for end in share_interval(area, clusters))
        beside = null[~np.isnan(null[:, 0])]
        found = {
            "area": float(area.mean()),
            "area_low": None if np.isnan(low) else low,
            "area_high": None if np.isnan(high) else high,
            "area_null": float(np.exp(beside).mean()) if len(beside) else None,
            "layers_led": led[g],
            "peak_layer": int(leads.mean[g].argmax()),
            "n": clusters.n,
            "rows": clusters.rows,
        }
        if g != target and np.isfinite(leads.mean[target]).all():
            found |= _crossing(leads, target, g)
        yield {name: (where | {"language": language} | found).get(name) for name in COURSES}


def _crossing(leads: _Leads, target: int, g: int) -> dict:
    """The layer from which on the target is more probable than language g in every layer, and its percentiles in
    resamples, where one that never is counts as later than all layers: no end where the percentile is such a one."""
    at = crossing_of(leads.mean[None, target] > leads.mean[None, g])[0]
    depth = leads.mean.shape[1]
    found: dict = {"crossing": int(at) if at < depth else None}
    found["crossing_relative"] = float(at / depth) if at < depth else None
    if leads.drawn is None:
        return found
    drawn = crossing_of(leads.drawn[:, target] > leads.drawn[:, g])
    found["crossing_share"] = float((drawn < depth).mean())
    ends = percentiles(drawn.astype(float), of_the_values=True)
    found |= {name: float(end) for name, end in zip(("crossing_low", "crossing_high"), ends) if end < depth}
    return found


def crossing_of(above: np.ndarray) -> np.ndarray:
    """[draws]: the first layer from which on `above` [draws, layers] is true to the end; the number of layers where it
    is not true at the end."""
    depth = above.shape[1]
    false_from_end = ~above[:, ::-1]
    last_false = np.where(false_from_end.any(1), false_from_end.argmax(1), depth)
    return depth - last_false

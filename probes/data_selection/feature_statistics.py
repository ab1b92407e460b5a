"""What the pool says of the autoencoder's features: how often each fires, how strongly and where, and how well they
describe the activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import torch

from probes.data_selection.contributions import Lifts, TargetFeatures, described, parts
from probes.data_selection.prototypes import Prototypes
from probes.data_selection.sample_vectors import Reader, SampleBatch
from workbench.models.host_copies import arriving
from workbench.sae.features import column_of
from workbench.sae.load import Sae

LOW_VARIANCE = 0.5  # explained variance below which the features are not to be trusted


class FeatureStatistics:
    """Sums over the tokens of some pool samples, each sample as many `times` as it is in the pool, how strongly the
    features `wanted` fire in each sample, and every feature's part of the similarities to `centers` [targets, width]
    (None: of none)."""

    def __init__(
        self, reader: Reader, times: np.ndarray, wanted: Sequence[int], centers: torch.Tensor | None = None
    ) -> None:
        self.reader, self.times, self.wanted, self.centers = reader, times, wanted, centers
        self.sums: dict[str, torch.Tensor] = {}
        self.peak = np.zeros((len(wanted), len(times)), np.float32)
        if reader.sae is not None:
            column = column_of(wanted, reader.sae.d_sae)
            column[column < 0] = len(wanted)  # one behind the last is of all that nobody asks for
            self.column = column.to(reader.model.device)

    def add(self, batch: SampleBatch) -> torch.Tensor | None:
        """Count the tokens of a batch. What samples begin with comes without indices, and is in all of its rows. The
        highest activation of each wanted feature in each sample (in what all begin with: in one), [wanted, samples]:
        for `add_peaks`, once it has left the device. Nothing here waits for it."""
        x, tokens, indices = batch.activations, batch.tokens, batch.indices
        if tokens is None:
            return None
        times = self.times[indices] if indices else [self.times[batch.rows].sum()]
        own = arriving(torch.as_tensor(times, dtype=torch.float64), x.device)
        weight = own[batch.owner]
        of_entry = weight[tokens.row]
        fired = torch.zeros(tokens.width, dtype=torch.float64, device=x.device)
        self._sum("fired", fired.index_add_(0, tokens.feature, of_entry))
        rows = own.sum() if indices else torch.zeros_like(own[0])
        self._sum("tokens", torch.stack([weight.sum(), of_entry.sum(), rows]))
        if indices and self.centers is not None:
            self._sum("parts", parts(batch.vectors["sae"], self.centers, own))
        if self.wanted and indices:
            rows = batch.vectors["sae"]
            total = torch.zeros(len(self.wanted) + 1, dtype=torch.float64, device=x.device)
            total.index_add_(0, self.column[rows.feature], rows.value * own[rows.row])
            self._sum("pool weight", total[:-1])
        if self.reader.sae.reconstructs:
            aim = self.reader.sae.target(batch.rebuilt)
            error = (aim - self.reader.sae.decode(tokens, x).reshape(aim.shape)).double().flatten(1)
            flat = aim.double().flatten(1)
            self._sum("sum", weight @ flat)
            self._sum("squares", torch.stack([weight @ (flat * flat).sum(1), weight @ (error * error).sum(1)]))
        return self._peaks(batch) if self.wanted else None

    def add_peaks(self, rows: list[int], peaks: torch.Tensor) -> None:
        """Take in what `add` gave of the samples that are these rows, on the host."""
        self.peak[:, rows] = np.maximum(self.peak[:, rows], peaks.numpy())

    def _sum(self, key: str, value: torch.Tensor) -> None:
        self.sums[key] = self.sums[key] + value if key in self.sums else value

    def _peaks(self, batch: SampleBatch) -> torch.Tensor:
        tokens, n, wanted = batch.tokens, max(1, len(batch.indices)), len(self.wanted)
        place = self.column[tokens.feature] * n + batch.owner[tokens.row]
        peak = torch.zeros((wanted + 1) * n, device=batch.activations.device)
        return peak.scatter_reduce(0, place, tokens.value, "amax").view(-1, n)[:wanted]

    def found(self, rows: np.ndarray, strongest: int) -> dict[str, np.ndarray]:
        """The sums, and the `strongest` samples of each wanted feature, which are these `rows` of the pool."""
        out = {key: value.cpu().numpy() for key, value in self.sums.items()}
        if self.wanted and strongest:
            best = _highest(self.peak, strongest)
            out |= {"top value": np.take_along_axis(self.peak, best, 1), "top row": np.asarray(rows)[best]}
        return out


def merge(whole: dict[str, Any], more: dict[str, np.ndarray], strongest: int) -> None:
    """Add what was found in further samples to `whole`; of equally strong samples the earlier ones are kept."""
    for key, value in more.items():
        if not key.startswith("top "):
            whole[key] = whole[key] + value if key in whole else value
    if "top value" in more:
        value, row = (
            np.concatenate([whole[key], more[key]], axis=1) if key in whole else more[key]
            for key in ("top value", "top row")
        )
        best = _highest(value, strongest)
        whole |= {"top value": np.take_along_axis(value, best, 1), "top row": np.take_along_axis(row, best, 1)}


def _highest(values: np.ndarray, n: int) -> np.ndarray:
    """Columns of the n largest of each row, to three digits: texts that begin alike have the same peak but for
    rounding, and the first counts."""
    mantissa, exponent = np.frexp(values)
    return np.argsort(-np.ldexp(np.round(mantissa, 3), exponent), axis=1, kind="stable")[:, :n]


def only(statistics: dict[str, np.ndarray], wanted: Sequence[int], shown: Sequence[int]) -> dict[str, np.ndarray]:
    """The statistics with the strongest samples of the features `shown` alone, of those of `wanted`."""
    place = {feature: i for i, feature in enumerate(wanted)}
    rows = [place[feature] for feature in shown]
    return {key: value[rows] if key.startswith("top ") else value for key, value in statistics.items()}


def chosen_features(
    found: Sequence[TargetFeatures], lifted: Sequence[Lifts], wanted: Sequence[int], most: int
) -> list[list[int]]:
    """Of every target, `most` features among `wanted` that contribute to its likeness: those that are its own first,
    then those that contribute most."""
    chosen = []
    for target, lift in zip(found, lifted):
        own = np.array([f for f in wanted if target.part[f] > 0], np.int64)
        chosen.append(own[lift.first(own, lift.contribution[own])][:most].tolist())
    return chosen


def feature_table(
    prototypes: Prototypes,
    chosen: Sequence[Sequence[int]],
    found: Sequence[TargetFeatures],
    lifted: Sequence[Lifts],
    wanted: Sequence[int],
    statistics: dict[str, np.ndarray],
    sae: Sae | None = None,
) -> pl.DataFrame:
    """`features`: those chosen for each target, how often each fires there and in the pool, how much it contributes
    and, where the release has pages on Neuronpedia, the link to its own."""
    numbers = ("weight", "share", "density", "pool_weight", "density_target", "lift", "lift_low", "lift_high")
    numbers += ("contribution", "p", "p_adjusted")
    schema = {"target": pl.String, "feature": pl.Int64} | dict.fromkeys(numbers, pl.Float64)
    schema |= {"distinctive": pl.Boolean, "n": pl.Int64}
    if sae is not None and sae.neuronpedia_id:
        schema["link"] = pl.String
    place, rows = {feature: i for i, feature in enumerate(wanted)}, []
    for t, own in enumerate(chosen):
        weight = prototypes.center(t).cpu().numpy()
        for feature in own:
            about = {
                "target": prototypes.names[t],
                "feature": feature,
                "weight": weight[feature],
                "share": weight[feature] / weight.sum(),
                "density": statistics["fired"][feature] / statistics["tokens"][0],
                "pool_weight": statistics["pool weight"][place[feature]] / statistics["tokens"][2],
            } | described(feature, found[t], lifted[t], len(own))
            rows.append(about | ({"link": sae.neuronpedia(feature)} if "link" in schema and sae is not None else {}))
    return pl.DataFrame(rows, schema=schema).with_columns(pl.col(numbers).fill_nan(None))


def quality_table(reader: Reader, statistics: dict[str, np.ndarray]) -> pl.DataFrame:
    """Mean active features per token, explained variance, features that never fire: over every token of the pool that
    counts.

    `loss_recovered_training` is of the autoencoder's training report, and only where it was trained on these
    weights."""
    schema = {
        "site": pl.String,
        "l0": pl.Float64,
        "explained_variance": pl.Float64,
        "dead_fraction": pl.Float64,
        "tokens": pl.Int64,
        "d_sae": pl.Int64,
        "k": pl.Int64,
        "loss_recovered_training": pl.Float64,
    }
    sae = reader.sae
    if sae is None:
        return pl.DataFrame(schema=schema)
    tokens, entries, _ = statistics["tokens"]
    explained = None
    if sae.reconstructs:
        total, error = statistics["squares"]
        spread = total - (statistics["sum"] ** 2).sum() / tokens
        explained = 1 - error / spread if spread > 1e-9 * total else None  # one token, again and again, has no variance
    else:
        reader.context.warn(
            "One layer of a cross-layer transcoder rebuilds nothing without the others: there is no explained variance."
        )
    if explained is not None and not explained >= LOW_VARIANCE:
        worse = ", less than the mean of the activations does" if explained < 0 else ""
        reader.context.warn(
            f"The sparse autoencoder explains {explained:.2g} of the variance of these activations{worse}: "
            f"its features do not describe this model on this pool, and the selection cannot be trusted."
        )
    own_weights = sae.trained_on.get("model_fingerprint") == reader.model.fingerprint
    recovered = sae.report.get("loss_recovered") if own_weights else None
    dead = float((statistics["fired"] == 0).mean())
    row = (str(reader.site), entries / tokens, explained, dead, int(tokens), sae.d_sae, sae.k, recovered)
    return pl.DataFrame([row], schema=schema, orient="row")

"""Data selection (MONA): rank a pool of training samples by the sparse features they share with a few examples of a
task.

Ma et al., Task-Specific Data Selection for Instruction Tuning via Monosemantic Neuronal Activations (arXiv 2503.15573).
Each sample is the mean, over its tokens, of its sparse-autoencoder features at one site; a target is the mean of its
examples; the score is the generalised Jaccard similarity of the two; the samples that score highest are selected (5 %
by default).

The forward pass stops at the site, what all samples begin with (a chat template's system prompt) is read and encoded
once, tokens are encoded in batches, and only the entries that are not zero are compared: activations and features
never pile up, and what grows with the pool is its text, 5 bytes a token, and a few numbers a row. A stopped run goes
on with the next part of the pool. Scores have intervals over the examples of the target; those of precision are over
clusters of selected rows, or targets. Deviations: BOS and other special tokens are not counted unless `specials` (the
paper does not say; their norm dominates the sums), nor are sinks, the first words that carry such norms where no BOS is
added; identical token sequences are computed once and score the same; equal scores keep the order of the file. Not
in the
paper: `prototype` max or subtask, `tokens` prompt or response, containment. BM25 scores are averaged over the
examples of a target, as the features are.

Does it select better? Not where we could measure it. On the organism's pool (nine topics that share words) and on 601
rows of GSM8K, Dolly and three BBH tasks, which the organism cannot read, features select far better than chance, but
not better than raw neurons, the hidden state or BM25 (tests/studies/selection.json: every method and similarity, 5 %
selected, with intervals). Labels that follow from words favour BM25; a model that reads the text may differ. A run
names the baselines that its features are worse than, and those that they are not told from (`worse_than`,
`not_better_than` in the summary). With aggregate=sum the selected
rows have about the target's length, with mean they are longer, as in Table 7.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from probes.data_selection.config import BIBTEX, NO_DIVERSITY, Config, read_pool, read_target, validate
from probes.data_selection.estimate import estimate
from probes.data_selection.precisions import clusters_in, row_groups, selected_by_any, verdict
from probes.data_selection.rankings import bm25, compare
from probes.data_selection.samples import TokenizedSamples, inputs_table, labels_of, target_files, tokenize
from probes.data_selection.selection import (
    Eligible,
    eligible,
    export,
    file_names,
    orders_of,
    score_table,
    selected_table,
)
from probes.data_selection.training_files import write_training_files
from workbench import organisms
from workbench.core.context import Context, Result
from workbench.core.errors import InputError
from workbench.core.long_rows import counted_rows
from workbench.core.paths import user_path
from workbench.core.registry import DataSpec, probe
from workbench.core.sample_tables import texts, with_texts
from workbench.core.sinks import count_sinks, counted_sinks, warn_of_lone_tokens
from workbench.models.model_outline import Facts
from workbench.models.prompt_style import check_style, style_of

if TYPE_CHECKING:
    from probes.data_selection.held_out import HeldExamples
    from probes.data_selection.sample_vectors import Reader

RANDOM_DRAWS = 20  # of the baseline `random`, whose numbers are their means


def _material(config: Config, model: str) -> dict[str, Path]:
    """The autoencoder and the targets that ship, where they are used."""
    shipped = organisms.autoencoder(model) if config.sae == "default" else None
    own = [user_path(entry) for entry in config.target]
    return ({"sae": shipped} if shipped else {}) | {
        f"target {name}": path for name, path in target_files(config.target, model).items() if path not in own
    }


def example(model: Facts) -> dict[str, object]:
    """Three targets; on a circuit, which has no autoencoder, only the baselines."""
    if not model.is_organism:
        return {"target": ("code", "cooking", "history"), "features": 8}
    baselines = {} if organisms.autoencoder(model.name) else {"sae": "none"}
    return {"target": ("sea", "music", "facts"), "features": 8} | baselines


@probe(
    "data-selection",
    title="Data selection",
    summary="Which samples of a pool look like a task inside the model, in sparse-autoencoder features, and why each "
    "was chosen.",
    tables={
        "scores": ("row", "target", "score", "rank", "selected"),
        "features": (
            "target",
            "feature",
            "weight",
            "density",
            "lift",
            "lift_low",
            "lift_high",
            "contribution",
            "distinctive",
        ),
        "quality": ("site", "l0", "explained_variance", "dead_fraction"),
        "inputs": ("row", "ids", "role", "mask"),
        "selected": ("target", "rank", "row", "score"),
        "selections": ("target", "method", "rank", "row", "score"),
        "precision": ("target", "method", "ratio", "k", "precision", "ci_low", "ci_high", "base_rate"),
        "overlap": ("target", "ratio", "method_a", "method_b", "overlap", "expected"),
        "lengths": ("target", "method", "ratio", "mean", "median", "target_mean", "pool_mean"),
        "passages": ("feature", "place", "row", "start", "peak", "tokens", "activations", "activation"),
        "effects": ("feature", "promotes", "promoted_by", "suppresses", "suppressed_by"),
        "shared": ("target", "row", "feature", "in_sample", "in_target", "both", "contribution", "lift"),
        "map": ("row", "x", "y", "text"),
        "feature_effects": (
            "target",
            "feature",
            "loss_change",
            "control_change",
            "difference",
            "ci_low",
            "ci_high",
            "n",
        ),
        "diversity": ("target", "selection", "features_covered", "mean_score", "n", "rows", "draws"),
        "finetuning": ("target", "condition", "seed", "loss_before", "loss_after", "n", "rows"),
        "finetuning_gain": ("target", "against", "difference", "ci_low", "ci_high", "n", "rows", "seeds"),
    },
    bibtex=BIBTEX,
    data=DataSpec(
        what="pool",
        columns=("text", "prompt", "response", "topic"),
        default="probes.data_selection:material/instructions.jsonl",
        for_model=organisms.world("pool.jsonl"),
    ),
    material=_material,
    validate=validate,
    before_loading="probes.data_selection.before_loading:check",
    figures="probes.data_selection.figures:figures",
    estimate=estimate,
    example=example,
    example_models=("organism",),
    leaves={
        "selected-*.jsonl": "the selected rows of a target",
        "train-*.jsonl": "the same to train on, in the form of `export`",
    },
    needs=("tokenizer",),
    version=5,
    keys={
        "scores": ("row", "target"),
        "features": ("target", "feature"),
        "precision": ("target", "method", "ratio"),
        "quality": ("site",),
        "passages": ("feature", "row"),
        "effects": ("feature",),
        "map": ("row",),
    },
    imports={"lists of features, JSON [{index, description, frac_nonzero}]": "probes.data_selection.published:read"},
)
def run(model, config: Config, context: Context) -> Result:
    """Score every pool sample against every target; select, compare with the baselines, explain.

    Raises InputError for an autoencoder that does not fit the model and for targets without any active feature."""
    from probes.data_selection import (
        contributions,
        feature_effects,
        feature_statistics,
        finetuning,
        pool_map,
        pool_scores,
        prototypes,
    )
    from probes.data_selection import diversity as varied
    from probes.data_selection.before_loading import check_possible
    from probes.data_selection.explanations import explain
    from probes.data_selection.held_out import groups_of
    from probes.data_selection.sample_vectors import open_reader, without_sinks

    check_possible(config, context)
    check_style(model, style_of(config))
    reader = open_reader(model, config, context)
    if config.feature_effects:
        feature_effects.check_effects(reader)
    frame = read_pool(config, context.data, context.read_as)
    tables_of = {
        name: read_target(config, name, path, context.read_as)
        for name, path in target_files(config.target, model.name).items()
    }
    labels, said = labels_of(frame, tables_of, config.label)
    if said:
        context.warn(said)
    tables_of, held = _held_out(model, config, tables_of, context)
    stage = context.stages(_weights(config, frame, tables_of))
    pool = _tokenized(reader, frame, "pool")
    examples = {name: _tokenized(reader, table, f"target {name}") for name, table in tables_of.items()}
    examples, tables_of = _that_count(examples, tables_of)
    with stage("targets"):
        for name, samples in examples.items():
            examples[name] = without_sinks(reader, samples)
            if config.sinks == "leave_out":
                _note_sinks(samples, examples[name], f"target {name}", context)
        examples, tables_of = _that_count(examples, tables_of)
        context.count(prompts=len(pool) + sum(map(len, examples.values())))
        targets = prototypes.of_targets(reader, examples, tables_of)
    about = [
        contributions.target_features(reader, samples, targets.center(t))
        for t, samples in enumerate(examples.values() if reader.sae is not None else ())
    ]
    wanted = sorted({int(f) for found in about for f in contributions.candidates(found, config.features)})
    with stage("pool"):
        scores, resampled, statistics, left = pool_scores.score_pool(reader, pool, targets, wanted)
    lifted = [contributions.lifts(found, statistics, t) for t, found in enumerate(about)]
    features = feature_statistics.chosen_features(about, lifted, wanted, config.features)
    if config.sinks == "leave_out":
        _note_sinks(pool, left, "pool", context)
    pool = left
    chance = _random_scores(frame.height, targets.names, context)
    if "bm25" in config.baselines:
        examples_of = {name: texts(table, config.tokens) for name, table in tables_of.items()}
        scores["bm25"] = bm25(texts(frame, config.tokens), examples_of)
    if "random" in config.baselines:
        scores["random"] = chance[0]

    among = eligible(pool, examples, config, context)
    orders = orders_of(scores, chance, among, context)
    main, names = reader.main, targets.names
    diverse, more_said = varied.EMPTY, {}
    if config.diversity != NO_DIVERSITY:
        plain, words = orders[main][0], texts(frame, config.tokens)
        with stage("diversity"):
            best, diverse, more_said = varied.diversified(reader, pool, frame, words, scores[main], plain, among)
        scores[f"{main}_plain"], orders[f"{main}_plain"], orders[main] = scores[main], [plain], [best]
    selected = orders[main][0]
    tables = {
        "scores": score_table(pool, scores[main], resampled, selected, among, labels),
        "selected": selected_table(frame, scores[main], selected, names, among.size),
    }
    lengths = {"lengths": pool.counted, "target_lengths": [samples.counted.mean() for samples in examples.values()]}
    sizes = _sizes(config, among.size, len(pool))
    groups = row_groups(frame, texts(frame, config.tokens), selected_by_any(orders, max(sizes.values())), context)
    with stage("comparison"):
        tables |= compare(names, scores, orders, sizes, labels=labels, groups=groups, **lengths)
    measured = finetuning.material_of(model, config, frame, held, context) if held is not None else None
    tables |= {
        "inputs": inputs_table(pool, examples, measured.held_samples() if measured else None),
        "features": feature_statistics.feature_table(targets, features, about, lifted, wanted, statistics, reader.sae),
        "quality": feature_statistics.quality_table(reader, statistics),
    }
    best = [order[: config.explain] for order in selected]
    shown = sorted({f for own in features for f in own})
    strongest = feature_statistics.only(statistics, wanted, shown)
    with stage("explanations"):
        tables |= explain(reader, pool, targets, best, shown, strongest, lifted)
    with stage("map"):
        tables["map"] = with_texts(pool_map.map_table(reader, pool), range(frame.height), texts(frame, config.tokens))
    if context.out is not None:
        files, how = file_names(names), {"form": config.export, "scores": config.export_scores}
        export(context.out, tables["selected"], files)
        write_training_files(context.out, tables["selected"], frame, context.data, files, **how)
    summary = _summary(tables, pool, among, reader)
    summary["pool_clusters"] = clusters_in(frame, texts(frame, config.tokens))
    if labels is not None:
        relevant = labels[0][:, None] == np.array(labels[1])
        summary |= verdict(orders, main, relevant, groups, among.size)
    summary |= contributions.marks(lifted)
    tables |= finetuning.EMPTY | diverse
    summary |= more_said
    tables |= feature_effects.EMPTY
    if config.feature_effects:
        alike = {name: groups_of(table) for name, table in tables_of.items()}
        read = feature_effects.measured_texts(reader, pool, frame, texts(frame, config.tokens), examples, alike)
        leading = [own[: config.feature_effects] for own in features]
        with stage("effects of features"):
            more, said = feature_effects.effects(reader, read, targets, leading)
        tables, summary = tables | more, summary | said
    if measured is not None:
        best_of = {name: orders[main][0][t] for t, name in enumerate(names)}
        with stage("fine-tuning"):
            more, said = finetuning.finetune(model, config, measured, best_of, among.size, context)
        tables, summary = tables | more, summary | said
    return Result(tables, {}, summary | counted_rows(context) | counted_sinks(context))


def _weights(config: Config, pool: pl.DataFrame, targets: dict[str, pl.DataFrame]) -> dict[str, float]:
    """What the stages take beside each other, in samples that are read once."""
    rows, examples = pool.height, sum(table.height for table in targets.values())
    chosen = (config.k or max(1, round(config.ratio * rows))) * len(targets)
    apart = len(targets) * config.feature_effects * (1 + config.effect_controls)
    return {
        "targets": 2 * examples,
        "pool": rows,
        "diversity": min(rows, (config.diversity_among + 5) * chosen) if config.diversity != NO_DIVERSITY else 0,
        "comparison": 0.2 * rows,
        "explanations": config.explain * len(targets),
        "map": 0.2 * rows,
        "effects of features": 0.3 * apart * (config.effect_rows + examples / max(1, len(targets))),
        "fine-tuning": 3 * config.finetune_epochs * chosen * config.finetune_seeds * 2 if config.finetune else 0,
    }


def _held_out(
    model: Any, config: Config, tables: dict[str, pl.DataFrame], context: Context
) -> tuple[dict[str, pl.DataFrame], HeldExamples | None]:
    """The examples that build the prototypes, and with finetune=true those that do not. Raises InputError for a model
    that cannot be fine-tuned."""
    if not config.finetune:
        return tables, None
    from probes.data_selection.held_out import split_examples
    from workbench.engine.finetuning import check_trainable

    check_trainable(model, config.finetune_weights)
    return split_examples(tables, config.finetune_held_out, context)


def _tokenized(reader: Reader, table: pl.DataFrame, what: str) -> TokenizedSamples:
    """The samples of a table as the model reads them and the autoencoder was fed, with warnings of what is cut or
    lost."""
    from workbench.sae.conventions import feed_of, lengths_warned

    model, config, context = reader.model, reader.config, reader.context
    feed = feed_of(reader.sae, model) if reader.sae is not None else None
    wanted = {"tokens": config.tokens, "specials": config.specials, "style": style_of(config), "long": config.long}
    found = tokenize(model, table, what=what, **wanted, feed=feed, check=context.check)
    for said in lengths_warned(reader.sae, list(map(len, found.ids)), what) if reader.sae is not None else ():
        context.warn(said)
    if found.cut:
        counter = f"rows_{'skipped' if config.long == 'skip' else 'cut'}_too_long"
        context.counters[counter] = context.counters.get(counter, 0) + found.cut
    if found.cut:
        context.warn(
            f"{found.cut} of {len(found)} rows of the {what} are longer than the model's context of "
            f"{model.context_length} tokens and were {'left out' if config.long == 'skip' else 'cut there'}."
        )
    if lost := int((found.counted == 0).sum()):
        where = "they are not scored and never selected" if what == "pool" else "they are left out"
        context.warn(
            f"{lost} of {len(found)} rows of the {what} have no token that counts (tokens={config.tokens}, "
            f"within the context); {where}."
        )
    return found


def _that_count(
    examples: dict[str, TokenizedSamples], tables: dict[str, pl.DataFrame]
) -> tuple[dict[str, TokenizedSamples], dict[str, pl.DataFrame]]:
    """The examples of each target in which a token counts, and their rows. Raises InputError where none is left."""
    usable = {name: np.flatnonzero(samples.counted > 0) for name, samples in examples.items()}
    if empty := [name for name, rows in usable.items() if not len(rows)]:
        raise InputError(
            f"Of the target {empty[0]} no example has a token that counts but sinks (tokens of massive activation); "
            f"give longer examples, or count sinks with sinks=keep."
        )
    taken = {name: samples.take(usable[name]) for name, samples in examples.items()}
    return taken, {name: table[usable[name]] for name, table in tables.items()}


def _note_sinks(before: TokenizedSamples, after: TokenizedSamples, what: str, context: Context) -> None:
    """Count the sinks that were left out, and warn of samples in which nothing else counted."""
    lost = before.counted - after.counted
    count_sinks(context, left_out=int(lost.sum()), texts=int((lost > 0).sum()))
    if empty := int(((before.counted > 0) & (after.counted == 0)).sum()):
        where = "they are not scored and never selected" if what == "pool" else "they are left out"
        context.warn(
            f"In {empty} of {len(before)} rows of the {what} nothing counts but sinks (tokens of massive activation), "
            f"which are left out; {where} (sinks=keep counts them)."
        )
    lone = sum(bool(mask[:1].any()) and counted == 1 for mask, counted in zip(before.masks, before.counted))
    warn_of_lone_tokens(context, lone, int((before.counted > 0).sum()), what=f"rows of the {what}")


def _random_scores(n: int, names: list[str], context: Context) -> list[np.ndarray]:
    """RANDOM_DRAWS times random scores [n, targets]."""
    return [
        np.stack([context.rng(f"random {name} {draw}").random(n) for name in names], axis=1)
        for draw in range(RANDOM_DRAWS)
    ]


def _sizes(config: Config, size: int, n: int) -> dict[float, int]:
    """ratio → number of rows at which methods are compared: those selected (`size` of n), and the config's `ratios`."""
    own = size / n if config.k else config.ratio
    sizes = {own: size} | {r: max(1, round(r * n)) for r in config.ratios if config.k or r != config.ratio}
    return dict(sorted(sizes.items()))


def _summary(
    tables: dict[str, pl.DataFrame], pool: TokenizedSamples, among: Eligible, reader: Reader
) -> dict[str, Any]:
    main, size = reader.main, among.size
    out: dict[str, Any] = {
        "pool": len(pool),
        "selected": size,
        "method": main,
        "duplicates_of_targets": int(among.duplicate.any(1).sum()),
    }
    if reader.sae is not None:
        row = tables["quality"].row(0, named=True)
        out |= {name: row[name] for name in ("l0", "explained_variance", "dead_fraction")}
    lengths = tables["lengths"].filter((pl.col("method") == main) & (pl.col("k") == size))
    if lengths.height:
        out |= {
            "mean_length_selected": lengths["mean"].mean(),
            "mean_length_target": lengths["target_mean"].mean(),
            "mean_length_pool": lengths["pool_mean"].mean(),
        }
    return out

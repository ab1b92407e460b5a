"""Knowledge conflict: which heads pull towards what the model memorised, which towards what the prompt says, and what
pruning them does.

Jin et al., Cutting Off the Head Ends the Conflict (PH3, arXiv 2402.18154, Findings of ACL 2024). The paper's abstract
and the follow-up JuICE (ICML 2025, text and code) could be read, the paper's body could not: what follows is our
specification of it, not a verified reproduction. Verified: late heads recall the attribute from memory or fetch it from
the context; they are scored by path patching and pruned by zeroing their output, k of {1, 3, 5, 7, 9, 15} chosen on a
validation split.

An item has a clean prompt, a prompt that contradicts the fact, a_m (first token of the true answer) and a_c (of the
contradiction). Step A sets attention or MLP outputs at the last position to zero over windows of layers, and cuts
attention from there to the names. Step B puts each head's last output on a corrupted prompt (other names, equal length)
in place of its own. `variant=direct` freezes all else, `direct_mlp` lets MLPs react, `total` everything; `auto` keeps
the better of total and direct on validation. Importance is the loss of log p: I = log p_before(a) − log p_patched(a);
the normaliser cancels in I_memory − I_context: the score of a head is the change of logit(a_m) − logit(a_c). Step C
estimates the total effect from gradients, and is compared with the direct and the total one. Step D prunes the best
heads of each side, against random heads of the same layers; where asked for, a prompt that asks, context-aware decoding
and the follow-up's dual run stand beside it. Roles depend on the kind of conflict: `groups` and `head_groups` report by
the file's source, relation, form.

Choices of ours: a head has a role if its score is told from zero over subjects, at a false discovery rate of 5 % over
heads, and has a least size; it is `mixed` if its sign hangs on the kind of conflict; heads to prune are selected
greedily, each together with those before it, so that lists can be shorter than k, and none that costs more than
`max_clean_drop` of clean accuracy is taken; k = 0 is a choice too, and k may cost as much on validation (1 = JuICE's
rule); an answer that names both sides counts for the one it names first; a subject is in one split only; the names of a
corrupted prompt are those of other items of the same relation. Left out: corruption by Gaussian noise on the names'
embeddings, exact match for open-domain QA with retrieved passages.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from probes.knowledge_conflict.asking import asking
from probes.knowledge_conflict.chosen_items import chosen_items, named, of_kind, rows_of, split_items
from probes.knowledge_conflict.config import (
    BIBTEX,
    ESSAYS,
    FALSE_DISCOVERIES,
    NEEDS,
    PATHS_NEED,
    ROLES,
    TRIED,
    Config,
)
from probes.knowledge_conflict.estimate import estimate
from probes.knowledge_conflict.fact_conflicts import SHIPPED, example, own_conflicts
from probes.knowledge_conflict.items import COLUMNS, GROUPS, OPTIONAL, SPLITS, Item
from probes.knowledge_conflict.tables import KEYS, TABLES
from workbench import organisms
from workbench.core.cells import as_label
from workbench.core.context import Context, Result
from workbench.core.errors import InputError
from workbench.core.registry import HEAD_MASK, DataSpec, probe
from workbench.core.tables import read_table
from workbench.models.model_outline import Facts
from workbench.stats.clusters import cluster_share


def validate(config: Config, data: Path | None, facts: Facts | None = None) -> None:
    """Raise InputError for conflicts that cannot be read, relations that are not in the file, a neutral text that
    cannot be read, and a variant that the architecture of the model does not allow."""
    rows = rows_of(config, data)
    known = {row.get("relation") for row in rows}
    for relation in config.test_relations:
        if as_label(relation) not in known:
            raise InputError(
                f"{named(data)} has no relation '{relation}' to hold out for testing; it has "
                f"{', '.join(sorted(map(str, known)))}."
            )
    if config.neutral != "auto":
        read_table(config.neutral, required=("text",), what="neutral text")
    tried = TRIED if config.variant == "auto" else (config.variant,)
    reasons = [facts.why_not(NEEDS[variant]) for variant in tried] if facts is not None else [None]
    if None not in reasons:
        reason, others = reasons[-1], [v for v in NEEDS if facts is not None and facts.why_not(NEEDS[v]) is None]
        instead = f" Use variant={others[-1]}." if others else ""
        raise InputError(f"variant={config.variant} cannot be measured: {reason[:1].lower()}{reason[1:]}{instead}")
    reason = facts.why_not(PATHS_NEED) if facts is not None and config.path_heads else None
    if reason is not None:
        raise InputError(f"path_heads cannot be measured: {reason[:1].lower()}{reason[1:]} Leave it at 0.")
    if config.kind and not of_kind(rows, config.kind):
        there = ", ".join(sorted({f"{c}:{row[c]}" for row in rows for c in GROUPS if row.get(c) is not None}))
        raise InputError(f"{named(data)} has no kind of conflict '{config.kind}'; it has {there or 'none'}.")


@probe(
    "knowledge-conflict",
    title="Knowledge conflict",
    summary="Which heads follow memory and which follow the context when the two disagree, and how pruning them tips "
    "the balance.",
    tables=TABLES,
    bibtex=BIBTEX,
    data=DataSpec(
        required=COLUMNS,
        default=SHIPPED,
        for_model=own_conflicts,
        what="conflicts",
        columns=OPTIONAL,
    ),
    material=lambda config, _model: (
        {"essays": ESSAYS, "documents": organisms.data("texts")} if config.neutral == "auto" else {}
    ),
    validate=validate,
    before_loading="probes.knowledge_conflict.before_loading:check",
    figures="probes.knowledge_conflict.figures:figures",
    estimate=estimate,
    example=example,
    example_models=("organism",),
    needs=("tokenizer", "heads_apart"),
    leaves={"pruned_heads*.json": HEAD_MASK, "dual_run*.json": "dual run"},
    head_scores={
        "heads": (
            "score",
            "memory_importance",
            "context_importance",
            "gradient_memory",
            "gradient_context",
            "direct_memory",
            "direct_context",
            "total_memory",
            "total_context",
            "role",
            "side",
        )
    },
    keys=KEYS,
    version=4,
)
def run(model, config: Config, context: Context) -> Result:
    """Measure every head on the find split, choose k on validation, prune on test.

    Raises InputError when no item can be measured or the model knows none of them."""
    from probes.knowledge_conflict.baselines import instructed
    from probes.knowledge_conflict.before_loading import check_engine
    from probes.knowledge_conflict.dual_runs import dual_runs
    from probes.knowledge_conflict.head_importance import gradient_ranks, head_effects, head_groups, head_table
    from probes.knowledge_conflict.head_masks import save_masks, supported
    from probes.knowledge_conflict.head_selection import head_lists, some_items
    from probes.knowledge_conflict.head_to_head import paths
    from probes.knowledge_conflict.information_flow import flow
    from probes.knowledge_conflict.patched_positions import patching
    from probes.knowledge_conflict.pruning import ablation, prune
    from probes.knowledge_conflict.stages import stage_weights

    check_engine(context)
    model.require("heads_apart", for_what="knowledge-conflict")  # before anything is computed
    how = asking(model, config)
    items, skipped = chosen_items(model, config, context, how)
    stage = context.stages(stage_weights(model, config, items))
    with stage("known items"):
        items, known = _known(model, config, context, items)
    split = split_items(items, config, context)
    find, asked = split["find"], instructed(config, context, how, split["test"])
    with stage("effects of heads"):
        effects, gradient = head_effects(model, config, context, find)  # steps B and C
    ablated = ablation(model, config, context, split["validation"])
    with stage("choice of heads"):
        lists, _gates = head_lists(model, config, context, find, effects, ablated)
    with stage("pruning"):
        pruned, summary, chosen, variant = prune(model, config, context, split, lists, ablated, asked)  # step D
    heads = head_table(model, config, effects, gradient, find, variant)
    mixed = (heads["role"] == "mixed").to_numpy().reshape(model.n_layers, model.n_heads)
    with stage("dual runs"):
        dual, said = dual_runs(model, config, context, split, some_items(find, config, context), mixed)
    if dual:
        pruned["pruning"] = pl.concat([pruned["pruning"], pl.DataFrame(dual)], how="diagonal_relaxed")
    tables = {"heads": heads, "head_groups": head_groups(model, config, effects[variant], find)}
    with stage("flow"):
        tables["flow"] = flow(model, config, context, find[: config.flow_items])  # step A
    if config.patch_items:
        with stage("patched positions"):
            tables["patching"] = patching(model, config, context, find[: config.patch_items])
    if config.path_heads:
        with stage("paths between heads"):
            tables["paths"] = paths(model, config, context, split["validation"][: config.path_items], heads)
    save_masks(model, config, context, chosen, summary)
    roles = {f"{role}_heads": heads.filter(pl.col("role") == role).height for role in (*ROLES, "mixed")}
    summary = {
        "variant": variant,
        "select": config.select,
        **{f"items_{name}": len(split[name]) for name in SPLITS},
        **{f"subjects_{name}": len({item.subject for item in split[name]}) for name in SPLITS},
        "known": known,
        **({"template": "chat"} if how.way == "chat" else {}),
        **skipped,
        **roles,
        "false_roles_expected": FALSE_DISCOVERIES * sum(roles.values()),
        **summary,
        **said,
        **{f"{role}_pruned_supported": supported(role, summary) for role in ROLES},
        **gradient_ranks(config, context, effects, gradient, find, variant),
        "status": "specification of this project; the paper's body was not available",
    }
    arrays = {"effects": effects[variant], "gradient": gradient}
    return Result(tables | pruned | {"inputs": _input_table(items, split)}, arrays, summary)


# the items


def _known(model, config: Config, context: Context, items: list[Item]) -> tuple[list[Item], dict]:
    """The items whose greedy clean continuation names the answer (all of them for keep=all), and the share that is
    known."""
    from probes.knowledge_conflict.answer_rates import as_said
    from probes.knowledge_conflict.answers import clean_right, edited

    right = context.part(
        "known", lambda: {"right": np.array(clean_right(model, config, context, items, edited(context)))}
    )["right"]
    known = as_said(cluster_share(right, np.array([item.subject for item in items])))
    if config.keep == "all":
        if not right.any():
            context.warn(
                f"The model knows none of the {len(items)} items (its clean answers never name the truth): there is no "
                f"memory to be in conflict, so the roles of heads say little."
            )
        return items, known
    if not right.any():
        raise InputError(
            f"{named(context.data)}: the model knows none of the {len(items)} items (its clean answers never name the "
            f"truth); give a file of what it does know with --data, or use keep=all to measure these anyway."
        )
    return [item for item, knows in zip(items, right) if knows], known


def _input_table(items: list[Item], split: dict[str, list[Item]]) -> pl.DataFrame:
    """What was fed and where it was measured, split by split."""
    columns = [name for name in GROUPS if any(name in item.group for item in items)]
    rows = [
        {
            "row": item.row,
            "ids": item.conflict,
            "corrupt_ids": item.corrupt,
            "position": len(item.conflict) - 1,
            "memory_id": item.memory_id,
            "context_id": item.context_id,
            "split": item.split,
            "clean_ids": item.clean,
            **{name: item.group.get(name) for name in columns},
        }
        for name in SPLITS
        for item in split[name]
    ]
    return pl.DataFrame(rows, infer_schema_length=None)

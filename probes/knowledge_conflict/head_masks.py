"""The chosen heads as files, for `--edit` and the explorer."""

from __future__ import annotations

from probes.knowledge_conflict.config import ROLES, Config
from probes.knowledge_conflict.random_controls import Head
from workbench.core.context import Context
from workbench.core.files import atomic
from workbench.engine.head_masks import save_heads
from workbench.models.model import Model


def save_masks(
    model: Model, config: Config, context: Context, chosen: dict[str, tuple[Head, ...]], summary: dict
) -> None:
    """Write the chosen heads of each side into the run folder; a side without any leaves no file, nor does one whose
    heads are not shown on test to do what they were chosen for: whoever applies a mask takes that for granted."""
    chosen = {role: heads if supported(role, summary) else () for role, heads in chosen.items()}
    for role in ROLES:
        if summary[f"{role}_pruned_k"] and not chosen[role]:
            context.warn(
                f"No set of {role} heads is supported: the {summary[f'{role}_pruned_k']} chosen ones are not shown on "
                f"the test items to bring more {ROLES[role]} answers than none or than random heads do, so no mask of "
                f"that side is written."
            )
    if context.out is None:
        return
    how = "uniform" if config.ablation == "uniform" else "zero"
    if config.ablation == "mean" and any(chosen.values()):
        context.warn("A head mask cannot hold means: pruned_heads.json switches its heads to zero, not to their mean.")
    files = {"pruned_heads": config.mask, "pruned_heads_memory": "memory", "pruned_heads_context": "context"}
    for name, role in files.items():
        path = context.out / f"{name}.json"
        path.unlink(missing_ok=True)  # of an earlier run in this folder
        if chosen[role]:
            with atomic(path) as temporary:
                save_heads(temporary, chosen[role], how=how, note=_note(role, summary), model=model)


def supported(role: str, summary: dict) -> bool:
    """Whether pruning the chosen heads brings more of the wanted answers on test than pruning none, and than pruning
    random heads of the same layers: both intervals lie above 0."""
    gains = [summary[f"{role}_pruned_{what}"] for what in ("gain", "gain_over_random")]
    return all(found is not None and found["low"] is not None and found["low"] > 0 for found in gains)


def _note(role: str, summary: dict) -> str:
    """What switching these heads off does, in words."""
    gain, over, clean = (summary[f"{role}_pruned_{what}"] for what in ("gain", "gain_over_random", "clean_change"))
    than = summary[f"{role}_pruned_compared_with"]
    effect = f"{ROLES[role]} rate on test {gain['value']:+.3f} ({over['value']:+.3f} over {than})"
    effect += f", clean accuracy {clean['value']:+.3f} ({clean['low']:+.3f} to {clean['high']:+.3f})"
    return f"{role} heads found by knowledge-conflict; without them the model should follow {ROLES[role]}: {effect}"

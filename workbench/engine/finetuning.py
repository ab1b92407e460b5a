"""Fine-tuning a copy of a model on some rows, with a budget of tokens, and the loss of texts under it.

The model that is given is never touched. AdamW (0.9, 0.999; weight decay 0.1 on matrices) with a cosine rate, gradients
clipped at norm 1, no dropout: the settings of MONA but for rate, batch and warm-up, which suit small selections. The
loss is of the tokens that count, given all before them, their mean in each step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from workbench.core.errors import InputError, RunFailed
from workbench.engine.passes import GRADIENT, ROWS
from workbench.models.batching import batches, pad
from workbench.models.devices import kept_randomness, memory
from workbench.models.model import Model

RANK = 8  # of LoRA
DECAY = 0.1
CLIP = 1.0
BYTES = 16  # of a parameter that is trained in float32: itself, its gradient, two moments


class TrainingRows(Protocol):
    """What a copy is trained on: token ids [length] of each row, and which of them count [length] bool."""

    ids: list[np.ndarray]
    masks: list[np.ndarray]

    def lists(self, rows: Sequence[int]) -> list[list[int]]:
        """The ids of some rows, as a model takes them."""
        ...


def check_trainable(model: Model, how: str) -> None:
    """Raise InputError for a model that no copy can be trained of here: quantised, on several devices, or (how=all) too
    large for the memory that is free."""
    places = {str(place) for place in (getattr(model.hf, "hf_device_map", None) or {}).values()}
    if getattr(model.hf, "is_quantized", False) or len(places) > 1:
        what = "spread over several devices" if len(places) > 1 else "quantised"
        raise InputError(
            f"{model.name} is {what}, and fine-tuning trains a copy of it; load it whole, or do without fine-tuning."
        )
    if how == "all":
        needed, free = BYTES * sum(p.numel() for p in model.hf.parameters()), memory(model.device)[0]
        if needed > free:
            raise InputError(
                f"Fine-tuning all weights of {model.name} takes {needed / 2**30:.0f} GiB, and {free / 2**30:.0f} are "
                f"free; train a LoRA (lora) instead of all weights."
            )


def steps_of(rows: np.ndarray, lengths: np.ndarray, *, steps: int, tokens: float, rng: np.random.Generator) -> list:
    """The rows of every step: `rows` in random orders, one order after the other, so many that after step s there were
    about (s + 1) × `tokens` tokens; at least one row a step. `lengths` [N]: tokens of every row of the pool."""
    found, queue, fed = [], [], 0
    for step in range(steps):
        here: list[int] = []
        while True:
            queue = queue or rng.permutation(rows)[::-1].tolist()
            length = int(lengths[queue[-1]])
            if here and fed + length / 2 > (step + 1) * tokens:  # further beyond with it than short without
                break
            here.append(queue.pop())
            fed += length
        found.append(here)
    return found


def trainable_copy(model: Model, how: str, seed: int) -> Any:
    """A copy of the Hugging Face model, ready to train: all weights in float32 (`how` "all"), or a LoRA of rank RANK
    beside every linear map ("lora"), begun from `seed`."""
    own = copy.deepcopy(model.hf).eval()
    if how == "all":
        return own.float().requires_grad_(True)
    import peft

    config = peft.LoraConfig(
        r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules="all-linear", bias="none", task_type="CAUSAL_LM"
    )
    with kept_randomness(model.device):
        torch.manual_seed(seed)
        try:
            return peft.get_peft_model(own, config).eval()
        except ValueError as error:  # no linear map that it knows
            raise InputError(f"peft finds nothing to put a LoRA beside in {model.name} ({error}).") from error


def train(
    hf: Any,
    model: Model,
    samples: TrainingRows,
    steps: Sequence[Sequence[int]],
    *,
    rate: float,
    told: Callable[[], None] = lambda: None,
) -> int:
    """Train the copy `hf` in place on the rows of every step; returns how many tokens it was fed. `told()` is called
    after every step and may raise (cancellation). Raises RunFailed where the loss is not finite."""
    weights = [p for p in hf.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in weights if p.ndim >= 2], "weight_decay": DECAY},
        {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer, fed = torch.optim.AdamW([group for group in groups if group["params"]], lr=rate), 0
    with torch.enable_grad():
        for number, rows in enumerate(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * number / len(steps)))
            optimizer.zero_grad()
            counted = sum(int(samples.masks[row][1:].sum()) for row in rows)
            for _, loss in _parts(hf, model, samples, rows):
                total = loss.sum() / counted
                if not bool(total.isfinite()):
                    raise RunFailed(
                        f"The loss of {model.name} became NaN or infinite while it was fine-tuned; lower the rate."
                    )
                total.backward()
            torch.nn.utils.clip_grad_norm_(weights, CLIP)
            optimizer.step()
            fed += sum(len(samples.ids[row]) for row in rows)
            told()
    return fed


@torch.no_grad()
def text_losses(
    hf: Any, model: Model, samples: TrainingRows, rows: Sequence[int], *, check: Callable[[], None]
) -> np.ndarray:
    """-ln p in nats, the mean over the tokens that count of each row, [rows] float64. Raises RunFailed where one is not
    finite."""
    found = np.zeros(len(rows))
    for places, loss in _parts(hf, model, samples, rows):
        check()
        found[places] = loss.sum(1).double().cpu().numpy()
    found /= [int(samples.masks[row][1:].sum()) for row in rows]
    if not np.isfinite(found).all():
        raise RunFailed(f"The loss of {model.name} on a held-out text is NaN or infinite; lower the learning rate.")
    return found


def _parts(hf: Any, model: Model, samples: TrainingRows, rows: Sequence[int]):
    """(places in `rows`, -ln p [places, T - 1] float32 of the tokens that count, 0 elsewhere), batch by batch."""
    lengths = [len(samples.ids[row]) for row in rows]
    most = model.rows_at_once(lengths, ROWS)
    for places in batches(lengths, max_tokens=GRADIENT, max_rows=most):
        here = [rows[place] for place in places]
        batch = pad(samples.lists(here), pad_id=model.pad_id, device=model.device)
        counted = torch.zeros(batch.ids.shape, dtype=torch.bool)
        for k, row in enumerate(here):
            counted[k, : len(samples.masks[row])] = torch.from_numpy(samples.masks[row])
        scores = hf(**model.arguments(batch)).logits[:, :-1].float()
        aim = batch.ids[:, 1:].masked_fill(~counted[:, 1:].to(batch.ids.device), -100).to(scores.device)
        loss = cross_entropy(scores.flatten(0, 1), aim.flatten(), ignore_index=-100, reduction="none")
        yield places, loss.view(aim.shape)

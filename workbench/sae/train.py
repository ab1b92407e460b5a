"""Train a sparse autoencoder on any model's activations: sae-lens's trainer, fed from our own capture, resumable.

The batches are a pure function of (texts, seed, step): texts are shuffled once and cut into blocks, each epoch goes
through the blocks in an order of its own and through the tokens of a block in an order of their own. A training that
was stopped goes on with the batch that it would have seen, and skips blocks without computing them. With a store, the
activations of a block are computed once. What is written in between is safetensors and JSON; nothing is pickled. BOS
and other special tokens are left out, as data selection leaves them out.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from workbench.core.errors import InputError
from workbench.core.files import atomic, write_json
from workbench.core.json_text import read_json_object
from workbench.core.private import make_folder
from workbench.core.sinks import SINKS
from workbench.core.wording import one_line
from workbench.engine.capture import capture
from workbench.engine.passes import ROWS
from workbench.models.devices import is_cpu
from workbench.models.host_copies import arriving
from workbench.models.model import DTYPES, Model
from workbench.models.sinks import norms_of, ordinary_tokens
from workbench.models.sites import _TRANSFORMER_LENS, _TRANSFORMER_LENS_TOP, Site
from workbench.sae import load
from workbench.sae.quality import quality

ARCHITECTURES = ("topk", "batchtopk", "jumprelu", "standard", "gated")
BLOCK_BYTES = 128 * 1024 * 1024  # of activations that are shuffled together
MEMORY_BYTES = 512 * 1024 * 1024  # of activations that are kept between epochs
LOOK = 20  # steps after which the host looks at the loss: it waits for the device then


@dataclass(frozen=True)
class SaeRecipe:
    """What decides the result, besides the model and the texts. `width` is a number of features, or such a multiple as
    "16x"."""

    site: str
    width: int | str = "16x"
    k: int = 32
    architecture: str = "topk"
    tokens: int = 1_000_000
    batch: int = 2048
    lr: float = 1e-3
    sparsity: float = 1.0  # weight of the sparsity loss: jumprelu (L0), standard and gated (L1)
    context: int = 512
    seed: int = 0
    held_out: float = 0.05  # share of the texts kept for the report
    sinks: str = "leave_out"  # tokens of massive activation: leave_out of training and report, or keep

    def features(self, d_in: int) -> int:
        """The number of features. Raises InputError for what is neither a number nor a multiple."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)(x?)", str(self.width))
        size = round(float(found[1]) * (d_in if found[2] else 1)) if found else 0
        if size < 1:
            raise InputError(
                f"The width '{self.width}' must be a number of features (2048) or a multiple of the site's width (16x)."
            )
        return size

    def check(self, model: Model) -> None:
        """Raise InputError for what cannot be trained on this model."""
        site = Site.parse(self.site)
        model.module(site)
        if site.kind == "logits" or site.head is not None:
            raise InputError(f"An autoencoder can be trained on a site of the stream or of a sublayer, not on {site}.")
        if self.architecture not in ARCHITECTURES:
            raise InputError(f"'{self.architecture}' is not an architecture; choose {', '.join(ARCHITECTURES)}.")
        if self.sinks not in SINKS:
            raise InputError(f"sinks is '{self.sinks}'; choose {' or '.join(SINKS)}.")
        size = self.features(model.site_size(site))
        if not 1 <= self.k <= size:
            raise InputError(f"k = {self.k} features cannot be active of {size}.")
        if min(self.tokens, self.batch) < 1 or self.tokens < self.batch:
            raise InputError(f"{self.tokens} tokens are fewer than one batch of {self.batch}.")
        if not 0 < self.held_out < 1 or not 0 < self.lr < float("inf") or self.context < 2 or not self.sparsity >= 0:
            raise InputError(
                "held_out must lie between 0 and 1, lr above 0, context at least at 2, sparsity at least at 0."
            )


def windows(model: Model, texts: Sequence[str], context: int) -> list[list[int]]:
    """Token ids of texts, the long ones cut into windows of `context` tokens, each with BOS where the tokenizer puts
    one."""
    context = min(context, model.context_length or context)
    front = [model.bos_id] if model.prepends_bos else []
    room = context - len(front)
    out = []
    for text in texts:
        ids = model.encode(text, bos=False)
        out += [front + ids[i : i + room] for i in range(0, len(ids), room) if len(ids[i : i + room]) > 1]
    return out


class Feed:
    """Batches of activations [batch, d] of the counted tokens of `ids`; an iterator that starts after `skip`
    batches."""

    def __init__(
        self,
        model: Model,
        ids: Sequence[Sequence[int]],
        recipe: SaeRecipe,
        *,
        store=None,
        check: Callable[[], None] | None = None,
    ):
        self.model, self.recipe, self.store, self.check = model, recipe, store, check
        self.site = Site.parse(recipe.site)
        special = model.special_ids
        self.ids = [ids[i] for i in np.random.default_rng([recipe.seed, 0]).permutation(len(ids))]
        self.masks = [np.array([token not in special for token in row]) for row in self.ids]
        if recipe.sinks == "leave_out":  # those that only their norms show are found as a block is read
            self.given = self.masks
            self.masks = [
                mask
                for start in range(0, len(self.masks), ROWS)
                for mask in ordinary_tokens(None, self.masks[start : start + ROWS])
            ]
        size = max(recipe.batch * 4, BLOCK_BYTES // (4 * model.site_size(self.site)))
        self.blocks: list[list[int]] = [[]]
        tokens = 0
        for i, mask in enumerate(self.masks):
            if tokens >= size:
                self.blocks.append([])
                tokens = 0
            self.blocks[-1].append(i)
            tokens += int(mask.sum())
        if len(self.blocks) > 1 and tokens < size / 2:  # a small last block would be seen in a worse shuffle
            last = self.blocks.pop()
            self.blocks[-1] += last
        self.kept: dict[int, torch.Tensor] = {}
        self.sinks: dict[int, int] = {}  # of each block that was read, how many were left out
        self.steps = [sum(int(self.masks[i].sum()) for i in block) // recipe.batch for block in self.blocks]
        if not any(self.steps):
            raise InputError(
                f"The texts have {sum(int(m.sum()) for m in self.masks)} tokens, fewer than one batch of "
                f"{recipe.batch}; give more text or a smaller batch."
            )

    def block(self, number: int) -> torch.Tensor:
        """Activations [tokens, d] of the counted tokens of one block, float32 on the CPU. Raises InputError where they
        are not finite, and where all of them are sinks."""
        if number in self.kept:
            return self.kept[number]
        rows = [self.ids[i] for i in self.blocks[number]]
        found = capture(self.model, rows, [self.site], positions="all", store=self.store, check=self.check)[
            self.site
        ].flatten(1)
        masks = [self.masks[i] for i in self.blocks[number]]
        if self.recipe.sinks == "leave_out":
            given = [self.given[i] for i in self.blocks[number]]
            masks = ordinary_tokens(norms_of(found, 1), given)
            self.sinks[number] = sum(int(mask.sum()) for mask in given) - sum(int(mask.sum()) for mask in masks)
        found = found[torch.from_numpy(np.concatenate(masks))]
        if not len(found):
            raise InputError(
                f"All counted tokens of {len(masks)} texts are sinks at {self.site} (tokens of massive activation); "
                f"give longer texts, or train on sinks with sinks=keep."
            )
        if not bool(found.isfinite().all()):
            raise InputError(
                f"The activations of {self.model.name} at {self.site} are NaN or infinite on these texts; "
                f"load the model in bfloat16 or float32."
            )
        if sum(kept.nbytes for kept in self.kept.values()) + found.nbytes <= MEMORY_BYTES:
            self.kept[number] = found
        return found

    def batches(self, skip: int = 0) -> Iterator[torch.Tensor]:
        epoch = skip // sum(self.steps)
        skip -= epoch * sum(self.steps)
        while True:
            # plain integers: a training that is stopped writes them down
            for number in np.random.default_rng([self.recipe.seed, 1, epoch]).permutation(len(self.blocks)).tolist():
                steps = self.steps[number]
                if skip >= steps:
                    skip -= steps
                    continue
                found = self.block(number)
                order = np.random.default_rng([self.recipe.seed, 2, epoch, number]).permutation(len(found))
                for i in range(skip, steps):
                    # sinks that only their norms show may leave the last batch short: it is filled from the first
                    taken = order.take(range(i * self.recipe.batch, (i + 1) * self.recipe.batch), mode="wrap")
                    yield found[torch.from_numpy(taken)]
                skip = 0
            epoch += 1


def train(
    model: Model,
    ids: Sequence[Sequence[int]],
    out: Path,
    recipe: SaeRecipe,
    *,
    store=None,
    dtype: str = "float32",
    save_every: int = 200,
    progress: Callable[[int, int, str], None] | None = None,
    check: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Train on the activations of `ids`, write the autoencoder in sae-lens's format and the report into `out`, return
    the report.

    What `out` already holds of the same training is resumed; a finished one is returned. `progress` and `check` are
    called between two steps; what they raise stops the training, and what is done by then is kept. `dtype` is that of
    the stored weights; the report is of the stored autoencoder on held-out texts. Raises InputError for what does not
    fit, and for another training in `out`."""
    recipe.check(model)
    out = Path(out).expanduser()
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder for the autoencoder.")
    make_folder(out)
    digest = hashlib.sha256(b"".join(np.asarray([len(row), *row], np.int64).tobytes() for row in ids)).hexdigest()
    identity = {
        "recipe": asdict(recipe),
        "dtype": dtype,
        "model": model.fingerprint,
        "model_dtype": str(model.dtype),
        "texts": len(ids),
        "tokens": sum(map(len, ids)),
        "ids": digest,
    }
    begun = out / "recipe.json"
    if begun.is_file() and _with_sinks(read_json_object(begun, what=str(begun))) != identity:
        raise InputError(f"The folder {out} holds another training (recipe.json); give another folder or remove it.")
    report_file = out / "quality.json"
    if report_file.is_file() and (out / "sae_weights.safetensors").is_file():
        return read_json_object(report_file, what=str(report_file))
    write_json(begun, identity)

    held = max(1, round(recipe.held_out * len(ids)))
    order = np.random.default_rng([recipe.seed, 3]).permutation(len(ids))
    feed = Feed(model, [ids[i] for i in order[held:]], recipe, store=store, check=check)
    trainer, scale = _trainer(model, feed, recipe)
    state = out / "training.safetensors"
    if state.is_file():
        feed.sinks |= _resume(trainer, state, identity)
    total = trainer.cfg.total_training_steps
    provider = feed.batches(trainer.n_training_steps)
    diverged = _Diverged(model.device)

    def save() -> None:
        diverged.check()
        _save(trainer, state, identity, feed.sinks)

    while trainer.n_training_steps < total:
        trainer.maybe_reset_sparsity()
        step = trainer.step(arriving(next(provider), model.device))
        trainer.n_training_steps += 1
        done = trainer.n_training_steps
        diverged.note(step.loss, done)
        look = done % LOOK == 0 or done == total
        if look or is_cpu(model.device):
            diverged.check()
        if done % save_every == 0 and done < total:
            save()
        try:
            if progress is not None and look:
                progress(done * recipe.batch, total * recipe.batch, f"loss {float(step.losses['mse_loss']):.4g}")
            if check is not None:
                check()
        except BaseException:  # asked to stop, between two steps
            save()
            raise

    inner = trainer.sae
    inner.fold_activation_norm_scaling_factor(scale)
    if hasattr(
        inner, "topk_threshold"
    ):  # sae-lens folds the weights only; activations become shorter by the scale with unit directions
        inner.topk_threshold /= scale
    if recipe.architecture in (
        "topk",
        "batchtopk",
    ):  # unit directions: an activation is then a length in the site's own units
        inner.fold_W_dec_norm()
        inner.cfg.rescale_acts_by_decoder_norm = False
    _write(inner, out, dtype)
    made = load.load(out, device=model.device)
    report = quality(model, made, [ids[i] for i in order[:held]], sinks=recipe.sinks, check=check) | {
        "sinks_left_out_training": sum(feed.sinks.values()),
        "tokens_seen": total * recipe.batch,
        "epochs": total / sum(feed.steps),
    }
    write_json(report_file, report)
    state.unlink(missing_ok=True)
    return report


class _Diverged:
    """The first step whose loss was not finite, noted on the device: the host looks when it waits anyway."""

    def __init__(self, device: torch.device):
        self._first = torch.zeros((), dtype=torch.int64, device=device)

    def note(self, loss: torch.Tensor, step: int) -> None:
        """Take in the loss of a step."""
        first = (self._first == 0) & ~torch.isfinite(loss.detach())
        self._first.masked_fill_(first, step)

    def check(self) -> None:
        """Raise InputError where a step diverged."""
        if step := int(self._first):
            raise InputError(
                f"The training diverged at step {step}: the loss is not finite. Use a smaller learning rate "
                f"(lr), in another folder."
            )


def _trainer(model: Model, feed: Feed, recipe: SaeRecipe):
    """(sae-lens trainer, scale): activations are scaled to a mean norm of √d while training, the decoder bias starts at
    their mean."""
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.registry import get_sae_training_class
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.training.sae_trainer import SAETrainer

    first = feed.block(0)
    scale = first.shape[1] ** 0.5 / float(first.norm(dim=1).mean())
    steps = recipe.tokens // recipe.batch
    device = str(model.device)
    special = {
        "topk": {"k": recipe.k},
        "batchtopk": {"k": float(recipe.k)},
        "standard": {"l1_coefficient": recipe.sparsity, "l1_warm_up_steps": steps // 5},
        "gated": {"l1_coefficient": recipe.sparsity, "l1_warm_up_steps": steps // 5},
        "jumprelu": {"l0_coefficient": recipe.sparsity, "l0_warm_up_steps": steps // 5},
    }[recipe.architecture]
    metadata = SAEMetadata(
        model_name=Path(model.name).name,
        model_fingerprint=model.fingerprint,
        hook_name=hook_name(feed.site),
        site=str(feed.site),
        context_size=recipe.context,
        prepend_bos=model.prepends_bos,
        seed=recipe.seed,
        sinks=recipe.sinks,
    )
    cls, config = get_sae_training_class(recipe.architecture)
    torch.manual_seed(recipe.seed)
    made = cls(
        config(d_in=first.shape[1], d_sae=recipe.features(first.shape[1]), device=device, metadata=metadata, **special)
    )
    with torch.no_grad():
        made.b_dec.copy_(first.mean(0) * scale)
    settings = SAETrainerConfig(
        total_training_samples=steps * recipe.batch,
        train_batch_size_samples=recipe.batch,
        lr=recipe.lr,
        lr_end=recipe.lr / 10,
        lr_warm_up_steps=max(2, steps // 20),
        lr_decay_steps=steps // 5,
        device=device,
        dead_feature_window=max(20, min(1000, steps // 8)),
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(settings, made, data_provider=iter(()))
    trainer.activation_scaler.scaling_factor = scale
    return trainer, scale


def hook_name(site: Site) -> str:
    """The TransformerLens name of a site, which sae-lens records."""
    for names, prefix in ((_TRANSFORMER_LENS_TOP, ""), (_TRANSFORMER_LENS, f"blocks.{site.layer}.")):
        for name, kind in names.items():
            if kind == site.kind:
                return prefix + name
    raise InputError(f"The site {site} has no TransformerLens name.")


def _save(trainer, path: Path, identity: dict, sinks: dict[int, int]) -> None:
    """Everything that the next step depends on, in one safetensors file."""
    tensors = {f"sae.{name}": value for name, value in trainer.sae.state_dict().items()}
    for name, parameter in trainer.sae.named_parameters():
        for key, value in trainer.optimizer.state.get(parameter, {}).items():
            tensors[f"adam.{name}.{key}"] = torch.as_tensor(value)
    tensors |= {"act_freq_scores": trainer.act_freq_scores, "since_fired": trainer.n_forward_passes_since_fired}
    counts = {
        "steps": trainer.n_training_steps,
        "samples": trainer.n_training_samples,
        "sampled": int(trainer.n_frac_active_samples),
        "sinks": sinks,
    }
    with atomic(path) as temporary:
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in tensors.items()},
            temporary,
            {"counts": json.dumps(counts), "identity": json.dumps(identity)},
        )


def _with_sinks(identity: Any) -> Any:
    """What a training was of; one from before sinks were left out kept them."""
    recipe = identity.get("recipe") if isinstance(identity, dict) else None
    return identity | {"recipe": {"sinks": "keep"} | recipe} if isinstance(recipe, dict) else identity


def _resume(trainer, path: Path, identity: dict) -> dict[int, int]:
    """Put a trainer where `_save` left it: its schedules are functions of the step and are replayed. How many sinks
    were left out of each block that was read."""
    try:
        with safe_open(path, "pt") as file:
            meta = file.metadata()
            found = {name: file.get_tensor(name) for name in file.keys()}
        written, counts = json.loads(meta["identity"]), json.loads(meta["counts"])
    except (SafetensorError, OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({one_line(error)}); remove it to begin again.") from error
    if _with_sinks(written) != json.loads(json.dumps(identity)):
        raise InputError(f"{path} is of another training; remove it to begin again.")
    device = trainer.cfg.device
    trainer.sae.load_state_dict(
        {name.removeprefix("sae."): value for name, value in found.items() if name.startswith("sae.")}
    )
    for name, parameter in trainer.sae.named_parameters():
        prefix = f"adam.{name}."
        own = {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
        if own:
            trainer.optimizer.state[parameter] = {
                key: value if key == "step" else value.to(device) for key, value in own.items()
            }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no optimizer step comes between these
        for _ in range(counts["steps"]):
            trainer.lr_scheduler.step()
            for schedule in trainer.coefficient_schedulers.values():
                schedule.step()
    trainer.act_freq_scores, trainer.n_forward_passes_since_fired = (
        found["act_freq_scores"].to(device),
        found["since_fired"].to(device),
    )
    trainer.n_training_steps, trainer.n_training_samples, trainer.n_frac_active_samples = (
        counts["steps"],
        counts["samples"],
        counts["sampled"],
    )
    return {int(block): int(left_out) for block, left_out in counts.get("sinks", {}).items()}


def _write(inner, out: Path, dtype: str) -> None:
    """The autoencoder for inference, in sae-lens's format, weights in `dtype`."""
    inner.cfg.device = "cpu"
    weights, config = inner.save_inference_model(out)
    wanted = DTYPES[dtype]
    found = {
        name: value.to(wanted) if value.is_floating_point() else value for name, value in load_file(weights).items()
    }
    with atomic(Path(weights)) as temporary:
        save_file(found, temporary)
    settings = read_json_object(Path(config), what=str(config))
    write_json(Path(config), settings | {"dtype": str(wanted).removeprefix("torch."), "device": "cpu"})

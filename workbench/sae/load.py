"""Sparse autoencoders, loaded through sae-lens, and their activations as sparse rows.

TopK, BatchTopK (stored as JumpReLU), JumpReLU, standard and gated autoencoders come from a sae-lens folder or release;
EleutherAI `sparsify` checkpoints are read by a converter of our own: theirs subtract the decoder bias from the input
whatever `normalize_decoder` says, and keep W_dec as [features, width], which the converter of sae-lens 6.54 takes
otherwise. Activations are computed in float32 by each autoencoder's own convention (scale matters: Jaccard is not scale
invariant).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workbench.core.errors import InputError
from workbench.core.json_text import read_json_object
from workbench.core.wording import one_line
from workbench.engine.edits import at_site
from workbench.models.model import Model
from workbench.models.running_pass import positions
from workbench.models.sinks import sinks_of
from workbench.models.sites import Site
from workbench.sae.sparse_rows import Rows, check_values

ARCHITECTURES = ("topk", "jumprelu", "standard", "gated")
PRE_ACTIVATIONS = {
    "cpu": 1_000_000,
    "cuda": 256_000_000,
}  # numbers held at once while encoding: on a CPU, what fits its cache


@dataclass(eq=False)
class Sae:
    """A sparse autoencoder that is ready to encode. `k` is None where the number of active features is not fixed."""

    inner: Any  # the sae_lens SAE, float32
    site: Site
    path: str
    trained_on: dict[str, Any] = field(default_factory=dict)  # model_name, model_fingerprint where recorded
    report: dict[str, Any] = field(default_factory=dict)  # its quality.json, where there is one

    @property
    def d_in(self) -> int:
        return int(self.inner.cfg.d_in)

    @property
    def d_sae(self) -> int:
        return int(self.inner.cfg.d_sae)

    @property
    def architecture(self) -> str:
        return self.inner.cfg.architecture()

    @property
    def k(self) -> int | None:
        return int(self.inner.cfg.k) if self.architecture == "topk" else None

    def describe(self) -> dict[str, Any]:
        """What a run records of the autoencoder it used."""
        return {
            "path": self.path,
            "site": str(self.site),
            "architecture": self.architecture,
            "width": self.d_sae,
            "k": self.k,
        }

    def encode(self, x: torch.Tensor) -> Rows:
        """Feature activations of activations [n, d] (or [n, H, d_head]), one sparse row per token, float32; all ≥ 0,
        finite."""
        # an autoencoder of whole heads reshapes them itself
        x = x if self.inner.cfg.reshape_activations == "hook_z" else x.flatten(1)
        step = max(1, PRE_ACTIVATIONS.get(x.device.type, 4_000_000) // self.d_sae)
        blocks = []
        with torch.no_grad():
            for start in range(0, max(1, len(x)), step):
                row, feature, value = self._entries(x[start : start + step].float())
                blocks.append((row + start, feature, value))
        row, feature, value = (torch.cat(column) for column in zip(*blocks))
        check_values(value)
        return Rows(row, feature, value, len(x), self.d_sae)

    def _entries(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if self.architecture != "topk":
            found = self.inner.encode(x)
            row, feature = found.nonzero(as_tuple=True)
            return row, feature, found[row, feature]
        inner = self.inner
        before = torch.addmm(inner.b_enc, inner.process_sae_in(x), inner.W_enc)
        if inner.cfg.rescale_acts_by_decoder_norm:
            before *= inner.W_dec.norm(dim=-1)
        return largest(before, self.k)

    @property
    def scales_input(self) -> bool:
        """Whether each token's activations are normalised first: a reconstruction then needs that token's own scale."""
        return self.inner.cfg.normalize_activations not in ("none", "expected_average_only_in")

    def decode(self, rows: Rows, like: torch.Tensor | None = None) -> torch.Tensor:
        """Reconstructions [n, d] (or [n, H, d_head]) of sparse token rows (ascending), float32.

        `like` [n, ...]: the activations that were encoded. An autoencoder that normalises its input takes the scale of
        every token from them, one of whole heads their shape. Raises InputError where they are needed and absent."""
        inner = self.inner
        heads = inner.cfg.reshape_activations == "hook_z"
        if like is None and (self.scales_input or heads):
            raise InputError(
                f"The sparse autoencoder '{self.path}' needs the activations that it encoded to rebuild them (like=)."
            )
        with torch.no_grad():
            value = rows.value
            if getattr(inner.cfg, "rescale_acts_by_decoder_norm", False):
                value = value / inner.W_dec.norm(dim=-1)[rows.feature]
            starts = torch.searchsorted(rows.row, torch.arange(rows.n, device=rows.row.device))
            mixed = (
                torch.nn.functional.embedding_bag(
                    rows.feature, inner.W_dec, starts, mode="sum", per_sample_weights=value
                )
                + inner.b_dec
            )
            if self.scales_input or heads:
                inner.process_sae_in(
                    like.float() if heads else like.flatten(1).float()
                )  # leaves the scales of exactly these tokens behind
                mixed = inner.reshape_fn_out(inner.run_time_activation_norm_fn_out(mixed), inner.d_head)
            return mixed

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """Activations [n, d] through the autoencoder and back."""
        with torch.no_grad():
            inside = x if self.inner.cfg.reshape_activations == "hook_z" else x.flatten(1)
            return self.inner.decode(self.inner.encode(inside.float())).reshape(x.shape)

    def directions(self) -> torch.Tensor:
        """Decoder directions [d_sae, d_in]: what an activation of one adds to the site."""
        weight = self.inner.W_dec.detach()
        return (
            weight / weight.norm(dim=-1, keepdim=True)
            if getattr(self.inner.cfg, "rescale_acts_by_decoder_norm", False)
            else weight
        )


def largest(x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(row, column, value) of those of the k largest of each row [n, d] that are above 0, rows ascending; exact, NaN
    kept.

    On a CPU the search is narrowed first: of d elements in groups, the k-th largest group maximum is reached by at
    least k elements, so nothing below it is among the k largest, and only a few more than k elements are left to
    compare. Of equal ones the first count."""
    n, d = x.shape
    groups = _groups(d, k) if x.device.type == "cpu" and x.dtype == torch.float32 and n else None
    maxima = x.view(n, d // groups, groups).amax(1).numpy() if groups else None
    if groups is None or np.isnan(maxima).any():
        value, column = x.topk(min(k, d), dim=-1, sorted=False)
        row = torch.arange(n, device=x.device)[:, None].expand_as(column)
        active = ~(value <= 0)
        return row[active], column[active], value[active]
    maxima.partition(groups - k, axis=1)
    numbers = x.numpy()
    flat = np.flatnonzero(
        numbers >= np.maximum(maxima[:, groups - k, None], np.nextafter(np.float32(0), np.float32(1)))
    )
    row, value = flat // d, numbers.reshape(-1)[flat]
    count = np.bincount(row, minlength=n)
    if (most := int(count.max())) > k:
        place = np.arange(len(flat)) - (np.cumsum(count) - count)[row]
        kept = np.zeros((n, most), np.float32)
        kept[row, place] = value
        kept.partition(most - k, axis=1)
        least = kept[:, most - k][row]
        equal = value == least
        room = k - np.bincount(row[value > least], minlength=n)  # for those that equal the k-th
        before = np.cumsum(equal) - equal  # of these, in all rows
        first = before[np.minimum(np.cumsum(count) - count, len(flat) - 1)]
        keep = (value > least) | (equal & (before - first[row] < room[row]))
        flat, row, value = flat[keep], row[keep], value[keep]
    return torch.from_numpy(row), torch.from_numpy(flat - row * d), torch.from_numpy(value)


@functools.cache
def _groups(d: int, k: int) -> int | None:
    """Into how many groups d elements are put to find the k largest: of what divides d, what is nearest to 8 k; None
    where nothing suits."""
    return min((g for g in range(2 * k, d // 4 + 1) if d % g == 0), key=lambda g: abs(g - 8 * k), default=None)


def load(source: str | Path, *, device: str | torch.device = "cpu", site: Site | str | None = None) -> Sae:
    """The autoencoder in a folder (sae-lens or sparsify), or `repository:folder` / `release:id` on the hub.

    `site` says where it belongs when its own config does not. Raises InputError for a folder that holds none, a kind
    that is not supported, and a hook name that is no site."""
    from sae_lens import SAE

    folder = find(source)
    try:
        if folder is None:
            release, _, inside = str(source).partition(":")
            inner = SAE.from_pretrained(release, inside, device=str(device), dtype="float32")
        elif (folder / "sae.safetensors").is_file():
            inner = SAE.load_from_disk(folder, device=str(device), dtype="float32", converter=read_sparsify)
        else:
            inner = SAE.load_from_disk(folder, device=str(device), dtype="float32")
    except InputError:
        raise
    except Exception as error:  # sae-lens raises whatever its reader trips over
        raise InputError(f"The sparse autoencoder '{source}' cannot be loaded ({one_line(error)}).") from error
    if inner.cfg.architecture() not in ARCHITECTURES:
        raise InputError(
            f"The sparse autoencoder '{source}' is of the kind '{inner.cfg.architecture()}'; supported are "
            f"{', '.join(ARCHITECTURES)} and batchtopk."
        )
    if inner.cfg.normalize_activations == "expected_average_only_in":
        raise InputError(
            f"The sparse autoencoder '{source}' expects scaled activations but does not say by how much; fold "
            f"the scale into its weights first."
        )
    inner.eval().requires_grad_(False)
    for name, tensor in inner.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"The sparse autoencoder '{source}' has NaN or infinite numbers in {name}.")
    meta = inner.cfg.metadata
    named = site_of(meta.hook_name) if meta.hook_name else None
    wanted = Site.parse(site) if site is not None else named
    if wanted is None:
        raise InputError(
            f"The sparse autoencoder '{source}' does not say which site it was trained on (hook name "
            f"{meta.hook_name!r}); give the site, for example site=resid_post.3."
        )
    if named is not None and named != wanted:
        raise InputError(
            f"The sparse autoencoder '{source}' was trained on {named}, not on {wanted}; its features mean "
            f"nothing there."
        )
    report = folder / "quality.json" if folder is not None else None
    about = read_json_object(report, what=str(report)) if report is not None and report.exists() else {}
    return Sae(
        inner, wanted, str(source), {key: meta[key] for key in ("model_name", "model_fingerprint") if meta[key]}, about
    )


def find(source: str | Path) -> Path | None:
    """The folder of an autoencoder, downloaded if it is `owner/repository:folder`; None for a release that sae-lens
    knows by name.

    Raises InputError when there is none. Imports nothing heavy for a folder."""
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "cfg.json").is_file():
            inside = sorted(p.parent.name for p in path.glob("*/cfg.json"))
            raise InputError(
                f"The folder '{source}' has no cfg.json; it is not a sparse autoencoder"
                + (f" (it holds some: {', '.join(inside[:5])})." if inside else ".")
            )
        if not any((path / name).is_file() for name in ("sae_weights.safetensors", "sae.safetensors")):
            raise InputError(
                f"The folder '{source}' has no sae_weights.safetensors (sae-lens) or sae.safetensors (sparsify)."
            )
        return path
    repository, colon, inside = str(source).partition(":")
    if not colon or path.is_absolute() or str(source).startswith((".", "~")):
        raise InputError(
            f"There is no sparse autoencoder '{source}': give a folder, or owner/repository:folder or "
            f"release:id on the hub."
        )
    if "/" not in repository:
        return None
    from huggingface_hub import snapshot_download

    try:
        return find(Path(snapshot_download(repository, allow_patterns=f"{inside}/*")) / inside)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"The hub has no sparse autoencoder '{source}' for you, or it cannot be reached ({type(error).__name__})."
        ) from error


def site_of(hook: str) -> Site | None:
    """The site of a hook name: TransformerLens (`blocks.5.hook_resid_post`), sparsify or Hugging Face (`layers.5`,
    `layers.5.mlp`)."""
    try:
        return Site.parse(hook)
    except InputError:
        pass
    if found := re.fullmatch(r"(?:.*\.)?(?:layers|h|blocks)[._](\d+)(?:\.(\w+))?", hook):
        kind = {
            None: "resid_post",
            "mlp": "mlp_out",
            "self_attn": "attn_out",
            "attn": "attn_out",
            "attention": "attn_out",
        }.get(found[2])
        return Site(kind, int(found[1])) if kind else None
    return Site("resid_pre", 0) if hook.rpartition(".")[2] in ("embed_tokens", "hook_embed") else None


def recorded_site(folder: Path | None) -> Site | None:
    """The site that the cfg.json of an autoencoder's folder names, without loading it; None where it names none that we
    know."""
    if folder is None:
        return None
    try:
        config = read_json_object(folder / "cfg.json", what="cfg.json")
    except InputError:
        return None  # loading it says what is wrong
    if not isinstance(config.get("metadata") or {}, dict):
        return None
    hook = (
        (config.get("metadata") or {}).get("hook_name")
        or config.get("hook_name")
        or ("" if (folder / "sae_weights.safetensors").is_file() else folder.name)
    )
    return site_of(hook) if hook and isinstance(hook, str) else None


def check_fits(sae: Sae, model: Model) -> list[str]:
    """Raise InputError unless the autoencoder's site exists in `model` and is as wide; return what deserves a warning.

    The weights decide where the autoencoder recorded their fingerprint, else the model's name where it recorded
    that."""
    model.module(sae.site)
    width = model.site_size(sae.site)
    if width != sae.d_in:
        raise InputError(
            f"The sparse autoencoder '{sae.path}' reads {sae.d_in} numbers, but {sae.site} of {model.name} "
            f"has {width}; it belongs to another model."
        )
    known, name = sae.trained_on.get("model_fingerprint"), sae.trained_on.get("model_name")
    if known == model.fingerprint:
        return []
    if known:
        return [
            f"The sparse autoencoder '{sae.path}' was trained on other weights ({name or 'unnamed'}) than "
            f"{model.name}; read its explained variance first."
        ]
    if name and not same_model(str(name), model.name):
        return [
            f"The sparse autoencoder '{sae.path}' was trained on the model '{name}', not on {model.name}: its "
            f"features may mean nothing there; read its explained variance first."
        ]
    return []


def same_model(one: str, other: str) -> bool:
    """Whether two names (hub id, TransformerLens alias, folder) are of one model: the same last part, or aliases of
    each other."""
    from transformer_lens.supported_models import MODEL_ALIASES

    def known(name: str) -> set[str]:
        short = name.rstrip("/").rsplit("/", 1)[-1].lower()
        groups = (
            {official.rsplit("/", 1)[-1].lower(), *(alias.rsplit("/", 1)[-1].lower() for alias in aliases)}
            for official, aliases in MODEL_ALIASES.items()
        )
        return {short}.union(*(group for group in groups if short in group))

    return bool(known(one) & known(other))


def read_sparsify(
    path: str | Path, device: str = "cpu", cfg_overrides: dict | None = None
) -> tuple[dict, dict[str, torch.Tensor]]:
    """(sae-lens config, weights) of an EleutherAI sparsify checkpoint: z = TopK(ReLU(W_enc (x − b_dec) + b_enc)), x̂ =
    W_decᵀ z + b_dec."""
    from safetensors.torch import load_file

    path = Path(path)
    config = read_json_object(path / "cfg.json", what=str(path / "cfg.json"))
    for key in ("signed", "transcode", "skip_connection"):
        if config.get(key):
            raise InputError(f"The sparsify checkpoint {path.name} has '{key}'; that is not supported.")
    if config.get("activation", "topk") != "topk":
        raise InputError(
            f"The sparsify checkpoint {path.name} has the activation '{config['activation']}'; only topk is supported."
        )
    weights = load_file(path / "sae.safetensors", device=device)
    encoder, decoder = weights["encoder.weight"], weights.get("W_dec")
    if decoder is None:
        raise InputError(f"The sparsify checkpoint {path.name} has no decoder (W_dec).")
    state = {
        "W_enc": encoder.T.float().contiguous(),
        "b_enc": weights.get("encoder.bias", encoder.new_zeros(len(encoder))).float(),
        "W_dec": decoder.float().contiguous(),
        "b_dec": weights["b_dec"].float(),
    }
    found = {
        "architecture": "topk",
        "d_in": encoder.shape[1],
        "d_sae": len(encoder),
        "k": int(config["k"]),
        "dtype": "float32",
        "device": device,
        "apply_b_dec_to_input": True,
        "rescale_acts_by_decoder_norm": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"hook_name": path.name, "sae_lens_version": "6.54.0"},
    }
    return found | {key: value for key, value in (cfg_overrides or {}).items() if key in ("dtype", "device")}, state


def neuron_rows(values: torch.Tensor, k: int) -> Rows:
    """The k largest neurons of each token [n, d_mlp] as sparse rows; what is left of them below zero (SiLU's dip) is
    dropped."""
    row, feature, value = largest(values, k)
    check_values(value)
    return Rows(row, feature, value, *values.shape)


@contextmanager
def spliced(
    model: Model, site: Site, change: Callable[[torch.Tensor], torch.Tensor], *, spare_sinks: bool = False
) -> Iterator[None]:
    """While open, the activations [tokens, …] of `site` are replaced by change(them), except at each sequence's first
    token when the tokenizer prepends BOS there (autoencoders are not trained on it), and at sinks to `spare_sinks`."""

    def through(x: torch.Tensor) -> torch.Tensor:
        new = change(x.flatten(0, 1)).to(x.dtype).reshape(x.shape)
        here = positions()
        spared = torch.zeros_like(here.mask)
        if model.prepends_bos:
            spared = (here.position_ids == 0) & here.mask
        spared = spared.to(x.device)
        if spare_sinks:
            spared = spared | sinks_of(x, here.mask)
        return torch.where(spared.reshape(*spared.shape, *[1] * (x.ndim - 2)), x, new)

    with ExitStack() as stack:
        at_site(model, site, through, stack)
        yield

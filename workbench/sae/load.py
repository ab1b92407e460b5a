"""Sparse autoencoders from a folder, a file or the hub, in every format that people publish (`workbench.sae.formats`).

Each is turned into the sae-lens class that computes it; releases that sae-lens knows by name are loaded by its own
loaders. What is not supported is refused by name.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from workbench.core.errors import InputError
from workbench.core.json_text import read_json_object
from workbench.core.wording import one_line
from workbench.models.model import Model
from workbench.models.sites import Site
from workbench.sae.autoencoder import PLAIN, PRE_ACTIVATIONS, Sae
from workbench.sae.formats import recognised
from workbench.sae.formats.checkpoint import SaeState
from workbench.sae.hook_names import site_of
from workbench.sae.largest import largest, neuron_rows
from workbench.sae.recorded_conventions import conventions_of
from workbench.sae.releases import Release, release_of
from workbench.sae.splicing import spliced

__all__ = [
    "PRE_ACTIVATIONS",
    "Sae",
    "check_fits",
    "find",
    "largest",
    "load",
    "neuron_rows",
    "recorded_site",
    "same_model",
    "site_of",
    "spliced",
]
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
ARCHITECTURES = ("topk", "jumprelu", "standard", "gated", *TRANSCODERS)


def load(source: str | Path, *, device: str | torch.device = "cpu", site: Site | str | None = None) -> Sae:
    """The autoencoder in a folder or file of any format, `owner/repository:path` on the hub, or `release:id` of
    sae-lens.

    `site` says where it belongs when its own files do not. Raises InputError for what holds none, a kind that is not
    supported, and a hook name that is no site."""
    path, release = find(source), release_of(str(source))
    try:
        if path is None:
            made, inner = _released(source, release, str(device))
        else:
            form, weights = recognised(source, path)
            made = form.read(weights)
            inner = _built(made, release, str(device))
    except InputError as error:
        raise InputError(_named(source, str(error))) from error
    except Exception as error:  # sae-lens raises whatever its reader trips over
        raise InputError(f"The sparse autoencoder '{source}' cannot be loaded ({one_line(error)}).") from error
    _check(inner, source)
    meta = inner.cfg.metadata
    here, out = _sites(inner, source, site)
    conventions = conventions_of(inner.cfg.to_dict(), dict(meta.items()), str(source))
    folder = path if path is None or path.is_dir() else path.parent
    report = folder / "quality.json" if folder is not None else None
    about = read_json_object(report, what=str(report)) if report is not None and report.exists() else {}
    sae = Sae(
        inner,
        here,
        str(source),
        {key: meta[key] for key in ("model_name", "model_fingerprint") if meta[key]},
        about,
        site_out=out,
        top_k=made.top_k,
        reconstructs=made.reconstructs,
        conventions=conventions,
        frame=None if conventions.need_model else PLAIN,
        neuronpedia_id=meta["neuronpedia_id"],
    )
    if sae.k is not None and not 1 <= sae.k <= sae.d_sae:
        raise InputError(
            f"The sparse autoencoder '{source}' says that {sae.k} features are active per token (k), of {sae.d_sae}; "
            f"its config is not that of its weights."
        )
    return sae


def _named(source: str | Path, said: str) -> str:
    """A reader's sentence with the autoencoder that it is about."""
    return said if str(source) in said else f"The sparse autoencoder '{source}' cannot be loaded: {said}"


def _built(made: SaeState, release: Release | None, device: str) -> Any:
    """The sae-lens autoencoder of a checkpoint, float32; what sae-lens has on record of a release is added."""
    from sae_lens import SAE

    config = dict(made.config) | {"dtype": "float32", "device": device}
    if release is not None:
        config["metadata"] = _metadata(config) | release.metadata()
    state = {name: value.to(device) for name, value in made.state.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\s*This SAE has non-empty")  # `conventions` obeys what it names
        return SAE.load_from_disk(".", device=device, dtype="float32", converter=lambda *_, **__: (config, state))


def _metadata(config: dict[str, Any]) -> dict[str, Any]:
    found = config.get("metadata")
    return dict(found) if isinstance(found, dict) else {}


def _released(source: str | Path, release: Release | None, device: str) -> tuple[SaeState, Any]:
    """(what sae-lens does not say, its autoencoder) of a release that sae-lens loads itself."""
    from sae_lens import SAE

    name, _, inside = str(source).partition(":")
    inner = SAE.from_pretrained(name, inside, device="cpu", dtype="float32").to(device)  # safetensors knows few devices
    return SaeState({}, {}, reconstructs=release is None or not release.cross_layer), inner


def _check(inner: Any, source: str | Path) -> None:
    """Raise InputError for a kind that is not supported, a scale that is not known and weights that are no numbers."""
    if inner.cfg.architecture() not in ARCHITECTURES:
        raise InputError(
            f"The sparse autoencoder '{source}' is of the kind '{inner.cfg.architecture()}'; supported are "
            f"{', '.join(ARCHITECTURES)} and batchtopk."
        )
    if inner.cfg.normalize_activations in ("expected_average_only_in", "covariance_whitening"):
        raise InputError(
            f"The sparse autoencoder '{source}' expects scaled activations but does not say by how much; fold "
            f"the scale into its weights first."
        )
    inner.eval().requires_grad_(False)
    for name, tensor in inner.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"The sparse autoencoder '{source}' has NaN or infinite numbers in {name}.")


def _sites(inner: Any, source: str | Path, site: Site | str | None) -> tuple[Site, Site | None]:
    """(where it reads, where a transcoder writes). Raises InputError where neither its files nor `site` say so."""
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
    if inner.cfg.architecture() not in TRANSCODERS:
        return wanted, None
    out = site_of(meta.hook_name_out) if meta.hook_name_out else None
    if out is None and wanted.kind == "mlp_in":
        out = Site("mlp_out", wanted.layer)
    if out is None:
        raise InputError(
            f"The transcoder '{source}' does not say which site it rebuilds (hook_name_out {meta.hook_name_out!r})."
        )
    return wanted, out


def find(source: str | Path) -> Path | None:
    """The folder or weights file of an autoencoder, downloaded if it is `owner/repository:path`; None for a release
    that sae-lens loads by name.

    Raises InputError when there is none: what a folder looks like most, and what it lacks."""
    path = Path(source).expanduser()
    if path.exists():
        recognised(source, path)
        return path
    repository, colon, inside = str(source).partition(":")
    if not colon or not inside or path.is_absolute() or str(source).startswith((".", "~")):
        raise InputError(
            f"There is no sparse autoencoder '{source}': give a folder or a file, or owner/repository:path or "
            f"release:id on the hub."
        )
    if "/" not in repository:
        release = release_of(str(source))
        if release is None or not release.read_here:
            return None
        repository, inside = release.repository, release.path
    from huggingface_hub import snapshot_download

    try:
        above = f"{inside.rpartition('/')[0]}/".lstrip("/")
        # what stands beside it and above it may name the model and the hooks
        wanted = [
            inside,
            f"{inside}/*",
            f"{above}*.json",
            f"{above}*.yaml",
        ]
        if "W_enc_" in inside:
            wanted.append(inside.replace("W_enc_", "W_dec_"))
        there = Path(snapshot_download(repository, allow_patterns=wanted)) / inside
        if there.exists():
            recognised(source, there)
            return there
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"The hub has no sparse autoencoder '{source}' for you, or it cannot be reached ({type(error).__name__})."
        ) from error
    raise InputError(f"The repository {repository} has no '{inside}'.")


def recorded_site(path: Path | None) -> Site | None:
    """The site that the files of an autoencoder name, without reading its weights; None where they name none that we
    know. InputError for files that cannot be read."""
    if path is None:
        return None
    form, weights = recognised(path, path)
    try:
        hook = form.about(weights).get("hook_name")
    except InputError as error:
        raise InputError(_named(path, str(error))) from error
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

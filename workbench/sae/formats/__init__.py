"""The formats in which autoencoders are published, and which of them a folder holds."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

from workbench.core.errors import InputError
from workbench.sae.formats import (
    dictionary_learning,
    gemma_scope,
    llama_scope,
    sae_lens,
    sparsify,
    torch_files,
    transcoders,
)
from workbench.sae.formats.checkpoint import Format

# the first whose files are all there is meant
FORMATS = (
    Format("sae-lens", ("cfg.json", "sae_weights.safetensors"), sae_lens.about, sae_lens.read),
    Format("EleutherAI sparsify", ("cfg.json", "sae.safetensors"), sparsify.about, sparsify.read),
    Format("Llama Scope", ("hyperparams.json", "checkpoints/final.safetensors"), llama_scope.about, llama_scope.read),
    Format("Llama Scope", ("hyperparams.json", "final.safetensors"), llama_scope.about, llama_scope.read),
    Format("lm_saes", ("config.json", "sae_weights.safetensors"), llama_scope.about, llama_scope.read_later),
    Format("Gemma Scope", ("params.npz",), gemma_scope.about, gemma_scope.read),
    Format("Gemma Scope 2", ("params.safetensors",), gemma_scope.about_second, gemma_scope.read_second),
    Format(
        "Gemma Scope 2 cross-layer",
        ("params_layer_*.safetensors",),
        gemma_scope.about_second,
        gemma_scope.read_second,
    ),
    Format("dictionary_learning", ("config.json", "ae.pt"), dictionary_learning.about, dictionary_learning.read),
    Format("transcoders by layer", ("layer_*.safetensors",), transcoders.about, transcoders.read),
    Format(
        "a cross-layer transcoder",
        ("W_enc_*.safetensors", "W_dec_*.safetensors"),
        transcoders.about,
        transcoders.read_cross_layer,
    ),
    Format("a PyTorch file (OpenAI, Qwen Scope …)", ("*.pt",), torch_files.about, torch_files.read),
    Format("a PyTorch file (Goodfire …)", ("*.pth",), torch_files.about, torch_files.read),
)


def recognised(source: str | Path, path: Path) -> tuple[Format, Path]:
    """(format, weights file) of a folder or of a weights file.

    Raises InputError for a folder that holds none (what it looks like most, and what is missing) or several."""
    folder, only = (path, None) if path.is_dir() else (path.parent, path)
    if only is not None and (pair := only.name.replace("W_enc_", "W_dec_")) != only.name:
        only = only.with_name(pair)
    for form in FORMATS:
        found = [sorted(folder.glob(pattern)) for pattern in form.files]
        if only is not None and all(found[:-1]) and fnmatch(only.name, form.files[-1]):
            return form, only
        if only is None and all(found):
            if len(found[-1]) > 1:
                some = ", ".join(file.name for file in found[-1][:5])
                raise InputError(
                    f"The folder '{source}' holds {len(found[-1])} autoencoders ({some} …); give one of these files."
                )
            return form, found[-1][0]
    raise _none(source, folder) if only is None else _no_weights(source, only)


def _no_weights(source: str | Path, file: Path) -> InputError:
    """Why a file is not the weights of an autoencoder."""
    for form in FORMATS:
        if fnmatch(file.name, form.files[-1]):
            return InputError(f"The file '{source}' is of {form.name}, but has no {form.files[0]} beside it.")
    known = ", ".join(dict.fromkeys(form.files[-1] for form in FORMATS))
    return InputError(f"The file '{source}' is no autoencoder's weights; those are called {known}.")


def _none(source: str | Path, folder: Path) -> InputError:
    """What a folder looks like most, and what it lacks of that."""
    there = {form: [pattern for pattern in form.files if next(folder.glob(pattern), None)] for form in FORMATS}
    best = max(FORMATS, key=lambda form: len(there[form]) / len(form.files))
    if there[best]:
        missing = [pattern for pattern in best.files if pattern not in there[best]]
        alike = [form for form in FORMATS if form is not best and len(there[form]) == len(there[best])]
        also = "".join(f", or {form.files[-1]} ({form.name})" for form in alike if set(there[form]) == set(there[best]))
        return InputError(
            f"The folder '{source}' looks most like {best.name} ({', '.join(there[best])}), but has no "
            f"{' and no '.join(missing)}{also}."
        )
    inside = sorted(
        {
            file.parent.name
            for form in FORMATS
            for file in folder.glob(f"*/{form.files[-1]}")
            if all(next(file.parent.glob(pattern), None) for pattern in form.files)
        }
    )
    if inside:
        return InputError(
            f"The folder '{source}' is not a sparse autoencoder, but holds some: {', '.join(inside[:5])}; give one."
        )
    return InputError(
        f"The folder '{source}' has no cfg.json with weights, no params.npz, hyperparams.json, ae.pt, transcoder or "
        f"PyTorch file: it is not a sparse autoencoder in a format that we know "
        f"({', '.join(dict.fromkeys(form.name for form in FORMATS))})."
    )

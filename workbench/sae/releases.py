"""What sae-lens has on record of published autoencoders: their repository, their page on Neuronpedia, how the model was
read."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

READ_HERE = ("sparsify",)  # conversions of sae-lens that differ from the published code


@dataclass(frozen=True)
class Release:
    """One entry of sae-lens' directory."""

    name: str
    id: str
    repository: str
    path: str
    conversion: str | None
    neuronpedia: str | None
    overrides: tuple[tuple[str, Any], ...]

    @property
    def read_here(self) -> bool:
        """Whether its files are read by our own reader."""
        return self.conversion in READ_HERE

    @property
    def cross_layer(self) -> bool:
        """Whether sae-lens gives one layer of a cross-layer transcoder, its decoders summed."""
        return self.conversion == "mntss_clt_layer_transcoder" or (self.conversion == "gemma_3" and "clt" in self.path)

    def metadata(self) -> dict[str, Any]:
        """What the directory adds to the metadata of the files."""
        own = ("model_from_pretrained_kwargs", "dataset_path", "prepend_bos", "context_size")
        found = {key: value for key, value in self.overrides if key in own}
        return found | ({"neuronpedia_id": self.neuronpedia} if self.neuronpedia else {})


def release_of(source: str) -> Release | None:
    """The entry of `release:id`, or of `owner/repository:path`; None where there is none."""
    first, colon, second = source.partition(":")
    if not colon:
        return None
    return _by_path().get((first, second)) if "/" in first else _by_name().get((first, second))


@functools.cache
def _by_name() -> dict[tuple[str, str], Release]:
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    found: dict[tuple[str, str], Release] = {}
    for name, entry in get_pretrained_saes_directory().items():
        overrides = tuple((entry.config_overrides or {}).items())
        for own, path in entry.saes_map.items():
            page = entry.neuronpedia_id.get(own)
            found[name, own] = Release(name, own, entry.repo_id, str(path), entry.conversion_func, page, overrides)
    return found


@functools.cache
def _by_path() -> dict[tuple[str, str], Release]:
    """Of several entries for a path the one with a page counts."""
    found: dict[tuple[str, str], Release] = {}
    for release in _by_name().values():
        place = release.repository, release.path
        if place not in found or (release.neuronpedia and not found[place].neuronpedia):
            found[place] = release
    return found

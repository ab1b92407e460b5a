"""A model whose weights were not read: its texts, its shape and its layers, from its config and its tokenizer. What a
probe writes for a model can be written for this one, and what does not fit is said before an hour of loading."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from workbench.core.errors import InputError
from workbench.core.file_hashes import stamp
from workbench.core.json_text import read_json_object
from workbench.models.adapters import Adapter, read_adapter
from workbench.models.files import load_tokenizer
from workbench.models.load_options import DAY, read_day
from workbench.models.model_outline import Facts, facts
from workbench.models.prompt_templates import check_date
from workbench.models.sites import Site
from workbench.models.text_side import TextSide, prepends_bos

READ = (".json", ".jinja", ".model", ".txt", ".py")  # endings of the files that it is made of


@dataclass(eq=False)
class UnloadedModel(TextSide):
    """What is known of a model from its files but for the weights. Numbers that its config does not say are 0."""

    about: Facts
    folder: Path
    tokenizer: Any
    name: str
    prepends_bos: bool
    revision: str | None = None
    adapter: Adapter | None = None
    day: datetime.date = DAY

    @property
    def n_layers(self) -> int:
        return self.about.layers

    @property
    def width(self) -> int:
        return self.about.width

    @property
    def context_length(self) -> int | None:
        return self.about.context

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """Every id that ends a generation: the tokenizer's and those of the generation config, else of the config."""
        found = [getattr(self.tokenizer, "eos_token_id", None)]
        file = next(f for f in ("generation_config.json", "config.json") if (self.folder / f).is_file())
        said = read_json_object(self.folder / file, what=f"The {file} of '{self.name}'").get("eos_token_id")
        found += said if isinstance(said, list) else [said]
        size = self.about.vocabulary or float("inf")
        return tuple(sorted({int(i) for i in found if isinstance(i, int) and i < size}))

    def check_site(self, site: Site) -> None:
        """Raise InputError for a site of a layer or head that the model does not have, as far as that is known."""
        if site.layer is not None and self.n_layers and site.layer >= self.n_layers:
            raise InputError(f"The site {site} is beyond the model: its layers are 0 to {self.n_layers - 1}.")
        if site.head is not None and self.about.heads and site.head >= self.about.heads:
            raise InputError(f"The site {site} is beyond the model: its heads are 0 to {self.about.heads - 1}.")


def open_unloaded(
    name: str,
    revision: str | None = None,
    *,
    adapter: str | Path | None = None,
    date: str | datetime.date | None = None,
    trust_remote_code: bool = False,
) -> UnloadedModel | None:
    """The model of that name without its weights; None for one that is not on this machine yet, or whose config cannot
    be read.

    Raises InputError for a tokenizer that cannot be read, an adapter that is none, and a day that the chat template
    does not print."""
    about = facts(name, revision)
    if about is None or about.folder is None:
        return None
    tokenizer = _tokenizer(about.folder, _stamps(about.folder), trust_remote_code)
    patch = None if adapter is None else read_adapter(adapter)
    found = UnloadedModel(
        about, about.folder, tokenizer, name, prepends_bos(tokenizer), revision, patch, read_day(date)
    )
    check_date(found, date)
    return found


def _stamps(folder: Path) -> tuple:
    """Other ones once a file that the tokenizer is made of has changed."""
    return tuple((path.name, stamp(path)) for path in sorted(folder.iterdir()) if path.suffix in READ)


@lru_cache(maxsize=8)
def _tokenizer(folder: Path, _stamps: tuple, trust_remote_code: bool) -> Any:
    found = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    if found is not None:  # a text that is too long is what is looked for; the library need not say it too
        found.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return found

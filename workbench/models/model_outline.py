"""A model as its files describe it, before any weight is read: how large it is, how long a text it takes, how its
tokenizer cuts one, and what its architecture allows. Imports torch only where the architecture is asked about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from workbench import organisms
from workbench.core import file_hashes
from workbench.core.errors import InputError, WorkbenchError
from workbench.core.json_text import read_json_object

SAMPLE = 200  # texts that are counted in full; the rest are taken to be like them
LONGEST = 20  # texts, the longest by characters, among which the longest by tokens is looked for
CHARACTERS = 4  # to a token, where there is no tokenizer to ask
TOKENIZER = "tokenizer"  # what can be asked of an outline beside the names of `ModelFacts`
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True)
class Facts:
    """What is known of a model from its files; of one that is not on this machine, only its ``name``.

    ``context``: tokens, None where its config does not say; ``folder``: None where there is none. Numbers that are not
    known are 0."""

    folder: Path | None = None
    layers: int = 0
    width: int = 0
    heads: int = 0
    context: int | None = None
    name: str = ""
    vocabulary: int = 0
    chat: bool = False  # its tokenizer has a chat template

    @property
    def is_organism(self) -> bool:
        return organisms.name_of(self.name) is not None

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, with what the tokenizer puts around it; taken from its characters where there is none
        to ask."""
        found = None if self.folder is None else _tokenizer(self.folder)
        if found is None:
            return [-(-len(text) // CHARACTERS) for text in texts]
        return [len(encoded.ids) for encoded in found.encode_batch(list(texts))]

    def tokens(self, texts: Sequence[str]) -> int:
        """Tokens of these texts together, by the model's own tokenizer where it is here; of many texts a sample is
        counted."""
        some = list(texts[:: max(1, len(texts) // SAMPLE)])
        return round(sum(self.lengths(some)) / len(some) * len(texts)) if some else 0

    def longest(self, texts: Sequence[str]) -> int:
        """Tokens of the longest of these texts; of many, the LONGEST ones by their characters are counted."""
        return max(self.lengths(sorted(texts, key=len)[-LONGEST:]), default=0)

    def fits(self, tokens: int) -> bool:
        """Whether a text of so many tokens is within the context, as far as that is known."""
        return self.context is None or tokens <= self.context

    def why_not(self, needs: Iterable[str] = ()) -> str | None:
        """Why a probe that needs these (`TOKENIZER`, or names of `ModelFacts`) cannot run on the model, in a sentence;
        None where nothing speaks against it, or where only the weights could tell."""
        needs = list(needs)
        if self.folder is None or self.is_organism:
            return None
        if TOKENIZER in needs and not any((self.folder / file).is_file() for file in TOKENIZER_FILES):
            return f"The model {self.name} has no tokenizer, so it cannot be given texts; copy its tokenizer beside it."
        from workbench.models.architecture_trial import try_out

        tried = try_out(self.folder)
        return None if tried is None else tried.why_not([need for need in needs if need != TOKENIZER])

    @property
    def attention_interface(self) -> bool:
        """Whether attention can be edited, as far as that is known."""
        if self.folder is None or self.is_organism:
            return True
        from workbench.models.architecture_trial import try_out

        tried = try_out(self.folder)
        return tried is None or tried.attention_interface


def facts(model: str, revision: str | None = None) -> Facts | None:
    """What is known of a model that is on this machine (at a revision of the hub's); None for one that would have to be
    fetched first, and for one whose config.json cannot be read."""
    folder = _folder(model, revision)
    try:
        config = None if folder is None else read_json_object(folder / "config.json", what="config.json")
    except (InputError, OSError):
        return None
    if config is None or folder is None:
        return None
    inner = config.get("text_config")
    config = config | (inner if isinstance(inner, dict) else {})

    def number(*names: str) -> int:
        found = (config[name] for name in names if isinstance(config.get(name), int))
        return next((int(value) for value in found if value > 0), 0)

    return Facts(
        folder,
        number("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
        number("hidden_size", "n_embd", "d_model"),
        number("num_attention_heads", "n_head", "num_heads", "n_heads"),
        number("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len") or None,
        name=model,
        vocabulary=number("vocab_size"),
        chat=_has_chat_template(folder),
    )


def outline(model: str) -> Facts:
    """`facts`, or nothing but the name."""
    return facts(model) or Facts(name=model)


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    try:
        return bool(
            read_json_object(folder / "tokenizer_config.json", what="tokenizer_config.json").get("chat_template")
        )
    except (InputError, OSError):
        return False


def _folder(model: str, revision: str | None = None) -> Path | None:
    try:
        if model in organisms.names():
            return organisms.folder(model)
    except WorkbenchError:
        return None
    from workbench.models.load_options import local_folder

    if (path := local_folder(model)) is not None:
        return path
    if model.count("/") != 1:
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, "config.json", revision=revision)
    except (HFValidationError, ValueError, OSError):
        return None
    return Path(found).parent if isinstance(found, str) else None


def _tokenizer(folder: Path) -> Any:
    """The fast tokenizer of a folder, which neither cuts nor pads; None where there is none."""
    stamps = tuple(
        file_hashes.stamp(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()
    )  # another file is another tokenizer
    return _open_tokenizer(folder, stamps) if stamps else None


@lru_cache(maxsize=2)
def _open_tokenizer(folder: Path, _stamps: tuple) -> Any:
    from tokenizers import Tokenizer

    try:
        if (folder / "tokenizer.json").is_file():
            found = Tokenizer.from_file(str(folder / "tokenizer.json"))
        else:
            from workbench.models.files import load_tokenizer

            found = getattr(load_tokenizer(folder), "backend_tokenizer", None)
    except Exception:  # the library raises bare Exceptions; loading the model says what is wrong with it
        return None
    if found is not None:
        found.no_truncation()
        found.no_padding()
    return found

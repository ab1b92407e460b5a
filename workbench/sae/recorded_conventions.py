"""What the file of an autoencoder records of the model and the texts of its training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workbench.core.errors import InputError

KINDS = {
    "prepend_bos": bool,
    "context_size": int,
    "dataset_path": str,
    "exclude_special_tokens": bool,
    "normalize_activations": str,
    "apply_b_dec_to_input": bool,
}
MODEL = ("center_writing_weights", "fold_ln", "fold_value_biases")  # of `model_from_pretrained_kwargs`


@dataclass(frozen=True)
class Conventions:
    """What is recorded; None where nothing is."""

    prepend_bos: bool | None = None
    context_size: int | None = None  # tokens of a sequence in training
    dataset_path: str | None = None
    exclude_special_tokens: bool | None = None
    normalize_activations: str | None = None
    apply_b_dec_to_input: bool | None = None
    seqpos_slice: tuple[int | None, ...] | None = None  # positions that were trained on
    center_writing_weights: bool | None = None
    fold_ln: bool | None = None
    fold_value_biases: bool | None = None
    before_gain: bool = False  # reads what a norm gives before its gain and bias
    module_output: bool = False  # named after a Hugging Face module, whose output a later norm may change

    def recorded(self) -> dict[str, Any]:
        """What is known, for a run's record."""
        return {key: value for key, value in self.__dict__.items() if value is not None and value is not False} | {
            key: False for key, value in self.__dict__.items() if value is False and key in (*KINDS, *MODEL)
        }

    def unknown(self) -> list[str]:
        """What is not recorded."""
        return [key for key, value in self.__dict__.items() if value is None]

    @property
    def need_model(self) -> bool:
        """Whether activations have to be changed by what only the model's weights say."""
        return bool(self.center_writing_weights or self.before_gain)


def conventions_of(config: dict[str, Any], metadata: dict[str, Any], source: str) -> Conventions:
    """The conventions in a sae-lens config. Raises InputError for a value of the wrong kind."""
    found: dict[str, Any] = {}
    for key, kind in KINDS.items():
        value = metadata.get(key, config.get(key))
        if key == "exclude_special_tokens" and isinstance(value, list):
            value = bool(value)
        if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            raise InputError(
                f"The sparse autoencoder '{source}' records {key} = {value!r}, which is no {kind.__name__}."
            )
        found[key] = value
    if (size := found["context_size"]) is not None and size < 1:
        raise InputError(f"The sparse autoencoder '{source}' records context_size = {size}, which holds no token.")
    kwargs = metadata.get("model_from_pretrained_kwargs") or {}
    if not isinstance(kwargs, dict) or not all(isinstance(kwargs.get(key, False), bool) for key in MODEL):
        raise InputError(f"The sparse autoencoder '{source}' records model_from_pretrained_kwargs = {kwargs!r}.")
    found |= {key: kwargs.get(key) for key in MODEL}
    hook = str(metadata.get("hook_name") or "")
    return Conventions(
        **found,
        seqpos_slice=_positions(metadata.get("seqpos_slice"), source),
        before_gain=hook.endswith("hook_normalized"),
        module_output="layers." in hook or ".h." in hook,
    )


def _positions(value: Any, source: str) -> tuple[int | None, ...] | None:
    if value is None:
        return None
    if (
        not isinstance(value, list | tuple)
        or not 1 <= len(value) <= 3
        or not all(v is None or (isinstance(v, int) and not isinstance(v, bool)) for v in value)
        or (len(value) == 3 and value[2] == 0)
    ):
        raise InputError(f"The sparse autoencoder '{source}' records seqpos_slice = {value!r}, which is no slice.")
    return tuple(value)

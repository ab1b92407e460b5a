"""Prompts as token ids: the bare text, or a turn of the user in the model's chat template."""

from __future__ import annotations

from workbench.core.errors import InputError
from workbench.models.model import Model


def template_of(model: Model, template: str = "auto") -> str:
    """How `prompt_ids` writes a prompt for this model: "chat" or "raw". Raises InputError for "chat" on a model without
    a template."""
    if template not in ("auto", "chat", "raw"):
        raise InputError(f"'{template}' is no way to write prompts; choose auto, chat or raw.")
    has_one = bool(getattr(model.tokenizer, "chat_template", None))
    if template == "chat" and not has_one:
        raise InputError(
            f"The model {model.name} has no chat template (a base model?); use template=raw to give it the bare text."
        )
    return "chat" if has_one and template != "raw" else "raw"


def prompt_ids(model: Model, text: str, *, template: str = "auto", system: str = "") -> list[int]:
    """Token ids of a prompt. "raw": the text itself (BOS where the tokenizer puts one); "chat": as the user's turn in
    the model's chat template, ready for its answer, after the message `system` if there is one; "auto": chat iff the
    model has a template.

    Raises InputError for "chat" on a model without a template, and for a system message where no template is used."""
    if model.tokenizer is None:
        raise InputError(f"The model {model.name} has no tokenizer, so it cannot read prompts.")
    if template_of(model, template) == "raw":
        if system:
            raise InputError(
                f"A system message needs a chat template, and {model.name} is given raw text here; leave out system."
            )
        ids = model.encode(text)
        if not ids and model.bos_id is not None:
            ids = [model.bos_id]
        return ids
    turns = ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": text}]
    try:
        written = model.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # templates are programs; they raise what they like (for instance for a system message)
        raise InputError(
            f"The chat template of {model.name} refuses the prompt ({str(error).splitlines()[0][:160]})."
        ) from error
    return list(model.tokenizer(written, add_special_tokens=False)["input_ids"])

"""What a chat template can be told besides the messages: the names that it reads, and its own switch of thinking."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from workbench.core.errors import InputError
from workbench.core.nearest_name import nearest

if TYPE_CHECKING:
    from jinja2 import nodes

# what the workbench gives a template itself, or what transformers takes for an argument of its own
_OWN = frozenset(
    "messages add_generation_prompt conversation chat_template tokenize padding truncation max_length return_tensors "
    "return_dict continue_final_message raise_exception strftime_now bos_token eos_token pad_token unk_token sep_token "
    "cls_token mask_token".split()
)
_SWITCHES = ("enable_thinking", "thinking", "enable_reasoning", "reasoning", "think")  # looked for first
_NO_SWITCH = re.compile("effort|budget|content|strength|level|mode|prompt|history|preserve|keep")
_OFF_WORDS = re.compile("^(no|skip|disable|without|hide)_")


@cache
def arguments_of(source: str) -> frozenset[str]:
    """The names that a chat template reads and does not give itself; none for one that cannot be read."""
    from jinja2 import TemplateError, meta

    try:
        tree = _compiled(source).environment.parse(source)
        found = meta.find_undeclared_variables(tree)
    except TemplateError:
        return frozenset()  # said when something is to be written with it
    first: dict[str, str] = {}  # what is set before it is read is the template's own
    _first_uses(tree, first)
    return frozenset(name for name in found if first.get(name) == "load") - _OWN


def _first_uses(node: nodes.Node, first: dict[str, str]) -> None:
    """Into `first`: whether each name is read ("load") or set ("store") where it first occurs."""
    from jinja2 import nodes

    if isinstance(node, nodes.Name):
        first.setdefault(node.name, node.ctx)
    inside = list(node.iter_child_nodes())
    for child in reversed(inside) if isinstance(node, nodes.Assign) else inside:  # the value is read first
        _first_uses(child, first)


def check_arguments(source: str, arguments: Iterable[str], *, name: str) -> None:
    """Raise InputError for an argument that the template of the model `name` does not read."""
    known = arguments_of(source)
    for argument in arguments:
        if argument in _OWN:
            raise InputError(f"template_args cannot give '{argument}': every chat template is given it anyhow.")
        if argument not in known:
            what = f"it reads {', '.join(sorted(known))}" if known else "it reads none; leave out template_args"
            raise InputError(
                f"The chat template of {name} reads no argument '{argument}'{nearest(argument, known)}; {what}."
            )


@cache
def thinking_switch(source: str) -> tuple[str, bool] | None:
    """The argument with which a chat template turns thinking on and off, and its value for on; None where it has none:
    one that is called like a switch and makes a difference."""
    names = arguments_of(source)
    first = [name for name in _SWITCHES if name in names]
    others = [n for n in sorted(names) if re.search("think|reason", n) and not _NO_SWITCH.search(n) and n not in first]
    for name in [*first, *others]:
        if _written(source, {name: True}) != _written(source, {name: False}):
            return name, not _OFF_WORDS.search(name)
    return None


def _written(source: str, arguments: Mapping[str, Any]) -> str:
    """What the template makes of a short conversation, or what it says to that."""
    out = []
    for content in ("Qx", [{"type": "text", "text": "Qx"}]):
        for first in ([], [{"role": "system", "content": content}]):
            messages = [*first, {"role": "user", "content": content}]
            try:
                out.append(_compiled(source).render(messages=messages, add_generation_prompt=True, **arguments))
            except Exception as error:  # templates are programs; they raise what they like
                out.append(type(error).__name__)
    return "\n".join(out)


def _compiled(source: str) -> Any:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return _compile_jinja_template(source)

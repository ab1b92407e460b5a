"""How prompts are written, as config keys that mean the same in every probe: `template`, `system`, `thinking` and
`template_args`. What is made of them is in `workbench.models.prompt_style`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from workbench.core.nearest_name import nearest
from workbench.core.registry import option

WAYS = ("auto", "raw", "chat")  # of writing a prompt, by name
CHAT = "chat:"  # begins a text that becomes the user's turn
THINKING = ("auto", "on", "off")


def template_option(
    default: str = "auto", *, slots: Sequence[str] = ("prompt",), more: str = "", later: bool = True
) -> Any:
    """The config key `template`. `slots`: what a text of one's own has to hold, in braces; `more`: what else the probe
    knows by name, as the rest of the help."""
    named = " and ".join(f"{{{slot}}}" for slot in slots)
    return option(
        default,
        f"how prompts are written: auto (the model's chat template where it has one), raw (the bare text), chat, a "
        f"text with {named}, or chat: and such a text, which becomes the user's turn{'; ' + more if more else ''}",
        later=later,
    )


def system_option(*, later: bool = True) -> Any:
    """The config key `system`."""
    return option("", "system message, with a chat template", later=later)


def thinking_option(default: str = "auto", *, later: bool = True) -> Any:
    """The config key `thinking`."""
    return option(
        default,
        "models that think before they answer: auto (what the chat template does by itself), on, or off (the "
        "template's own switch, or an empty block of thinking, so that the answer follows)",
        choices=THINKING,
        later=later,
    )


def template_args_option(*, later: bool = True) -> Any:
    """The config key `template_args`."""
    return option((), "arguments of the chat template, each as name:value", later=later)


def template_arguments(pairs: Sequence[str]) -> dict[str, Any]:
    """What the entries of `template_args` say: true, false, null and numbers become such, as does any other JSON;
    everything else is a text. Raises ValueError, in words that end a sentence."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, colon, value = pair.partition(":")
        name, value = name.strip(), value.strip()
        if not colon or not name.isidentifier():
            raise ValueError(f"template_args takes name:value, not '{pair}'")
        if name in found:
            raise ValueError(f"template_args gives '{name}' twice")
        found[name] = _value(value)
    return found


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text.lower() in ("none", "null"):
        return None
    try:
        return json.loads(text, parse_constant=str)
    except (ValueError, RecursionError):
        return text


def template_text(template: str) -> str | None:
    """The text of one's own in a `template`, without its `chat:`; None for one of the ways by name."""
    if template.startswith(CHAT):
        return template.removeprefix(CHAT)
    return None if template in WAYS else template


def check_prompt_options(config: Any, *, slots: Sequence[str] = ("prompt",), known: Sequence[str] = ()) -> None:
    """Raise ValueError, in words that end a sentence, for values of the four keys that cannot go together: for the
    `__post_init__` of a config. `known`: names of templates that the probe has besides."""
    template, system = getattr(config, "template", "raw"), getattr(config, "system", "")
    thinking, arguments = getattr(config, "thinking", "auto"), getattr(config, "template_args", ())
    text = None if template in known else template_text(template)
    if text is not None:
        for slot in slots:
            if text.count(f"{{{slot}}}") != 1:
                needed = " and ".join(f"{{{name}}}" for name in slots)
                times = " once each" if len(slots) > 1 else " once"
                raise ValueError(
                    f"'template' needs {needed},{times}, or one of {', '.join((*known, *WAYS))}"
                    f"{nearest(template, (*known, *WAYS)) if '{' not in template else ''}"
                )
    if template == "raw" or (text is not None and not template.startswith(CHAT)):
        shown = "template=raw" if template == "raw" else "a template that is a text of its own"
        if system:
            raise ValueError(f"a system message needs a chat template, so it cannot go with {shown}")
        if thinking == "on":
            raise ValueError(f"thinking=on needs a chat template, so it cannot go with {shown}")
        if arguments:
            raise ValueError(f"template_args are for a chat template, so they cannot go with {shown}")
    template_arguments(arguments)


def filled(text: str, fields: dict[str, str]) -> tuple[str, dict[str, tuple[int, int]]]:
    """`text` with every {slot} replaced by its field, and where each field stands in it, as characters [start, end). A
    field that itself looks like a slot is left as it is."""
    out, spans, at = "", {}, 0
    for match in re.finditer("|".join(re.escape(f"{{{slot}}}") for slot in fields), text) if fields else ():
        out += text[at : match.start()]
        slot = match[0][1:-1]
        spans[slot] = (len(out), len(out) + len(fields[slot]))
        out, at = out + fields[slot], match.end()
    return out + text[at:], spans

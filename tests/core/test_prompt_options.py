"""The keys that say how prompts are written mean the same wherever they are."""

from dataclasses import dataclass

import pytest

from workbench.core.config import build
from workbench.core.errors import InputError
from workbench.core.prompt_options import (
    check_prompt_options,
    filled,
    system_option,
    template_args_option,
    template_arguments,
    template_option,
    thinking_option,
)


@dataclass(frozen=True)
class Asked:
    template: str = template_option(slots=("context", "question"))
    system: str = system_option()
    thinking: str = thinking_option("off")
    template_args: tuple[str, ...] = template_args_option()

    def __post_init__(self):
        check_prompt_options(self, slots=("context", "question"), known=("paper",))


WAYS = ["auto", "raw", "chat", "paper", "{context} {question}", "chat:{question} {context}"]


@pytest.mark.parametrize("template", WAYS)
def test_ways_by_name_and_texts_with_every_slot_are_taken(template):
    assert build(Asked, {"template": template}).template == template


WRONG = {
    "a slot twice": ({"template": "{context}{context}{question}"}, r"needs \{context\} and \{question\}, once each"),
    "no slot": ({"template": "hello"}, "needs"),
    "a name misspelt": ({"template": "chatt"}, r"did you mean 'chat'\?"),
    "chat without a slot": ({"template": "chat:hello {context}"}, "needs"),
    "system, raw": ({"template": "raw", "system": "x"}, "system message needs a chat template"),
    "system, a text": ({"template": "{context}{question}", "system": "x"}, "system message needs a chat template"),
    "thinking, raw": ({"template": "raw", "thinking": "on"}, "thinking=on needs a chat template"),
    "arguments, raw": ({"template": "raw", "template_args": "a:1"}, "template_args are for a chat template"),
    "no colon": ({"template_args": "a"}, "takes name:value, not 'a'"),
    "no name": ({"template_args": ":1"}, "takes name:value"),
    "twice": ({"template_args": "a:1,a:2"}, "gives 'a' twice"),
    "thinking misspelt": ({"thinking": "of"}, "did you mean 'off'|must be one of"),
}


@pytest.mark.parametrize(("values", "match"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_is_said_before_a_model_is_loaded(values, match):
    with pytest.raises(InputError, match=match):
        build(Asked, values)


def test_arguments_become_what_they_look_like():
    pairs = ("a:true", "b: False", "c:3", "d:0.5", "e:high", "f:null", "g:x:y", 'h:["p"]', "i:NaN", "j:")
    assert template_arguments(pairs) == {
        "a": True,
        "b": False,
        "c": 3,
        "d": 0.5,
        "e": "high",
        "f": None,
        "g": "x:y",
        "h": ["p"],
        "i": "NaN",
        "j": "",
    }


def test_new_keys_are_no_part_of_a_runs_identity_at_their_default():
    assert all(field.metadata["later"] for field in Asked.__dataclass_fields__.values())


def test_a_field_is_put_in_once_and_its_place_known():
    text, spans = filled("<{a}|{b}>", {"a": "{b}", "b": "x{a}"})
    assert text == "<{b}|x{a}>" and text[slice(*spans["a"])] == "{b}" and text[slice(*spans["b"])] == "x{a}"

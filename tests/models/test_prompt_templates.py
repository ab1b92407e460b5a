"""What goes into a chat template is in the prompt that comes out, on every day the same."""

import copy
import datetime
import random
import types

import pytest

from workbench.core.errors import InputError
from workbench.models.load_options import DAY
from workbench.models.loading import load
from workbench.models.prompt_templates import prompt_ids, render, uses_date

TURN = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def plain(tiny_llama):
    return load(str(tiny_llama))


@pytest.fixture
def chat(plain):
    """chat(template) → the model with that template."""

    def made(template, **changes):
        model = copy.copy(plain)
        model.tokenizer = copy.deepcopy(plain.tokenizer)
        model.tokenizer.chat_template = template
        for name, value in changes.items():
            setattr(model, name, value)
        return model

    return made


def test_every_turn_is_in_the_prompt(chat):
    model = chat(TURN)
    written = render(model, [("system", "Be kind."), ("user", " Who is Lily? ")], answer=True)
    assert written == "<system>Be kind.\n<user> Who is Lily? \n<assistant>"
    assert prompt_ids(model, "a") != prompt_ids(model, "b") != prompt_ids(model, "b", system="a")


DROPS = {
    "the system turn": "{% for m in messages if m.role == 'user' %}[{{ m.content }}]{% endfor %}",
    "all but the last": "[{{ messages[-1].content }}]",
    "all but the first words of a system": "{% for m in messages %}{{ m.content if m.role == 'user' "
    "else 'system' }}{% endfor %}",
}


@pytest.mark.parametrize("template", DROPS.values(), ids=DROPS)
@pytest.mark.parametrize("system", ["Be kind.", "system", "hello"])
def test_a_template_that_leaves_out_the_system_message_is_refused(chat, template, system):
    """Also where its words stand in the prompt for another reason."""
    model = chat(template)
    assert prompt_ids(model, "hello")
    with pytest.raises(InputError, match="leaves out the system message; leave out system"):
        prompt_ids(model, "hello", system=system)


@pytest.mark.parametrize("template", ["user:", "", "{{ bos_token }}{% for m in messages %}{{ m.text }}{% endfor %}"])
@pytest.mark.parametrize("text", ["hello", "user", ""])
def test_a_template_that_leaves_out_the_prompt_is_refused(chat, template, text):
    model = chat(template or "{{ '' }}")
    with pytest.raises(InputError, match="leaves out the user's text; use template=raw"):
        prompt_ids(model, text)


PARTS = {
    "a loop": "{% for m in messages %}<{{ m.role }}>{% for part in m.content %}{% if part.type == 'text' %}"
    "{{ part.text }}{% endif %}{% endfor %}{% endfor %}<assistant>",
    "the first part": "{% for m in messages %}<{{ m.role }}>{{ m.content[0].text }}{% endfor %}<assistant>",
    "it raises without": "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ raise_exception('no') }}"
    "{% endif %}{{ m.content[0]['text'] }}{% endfor %}<assistant>",
    "system as text": "{% for m in messages %}<{{ m.role }}>"
    "{{ m.content if m.role == 'system' else m.content[0].text }}{% endfor %}<assistant>",
    "user as text": "{% for m in messages %}<{{ m.role }}>{{ m.content if m.role == 'user' else m.content[0].text }}"
    "{% endfor %}<assistant>",
}


@pytest.mark.parametrize("template", PARTS.values(), ids=PARTS)
def test_a_template_that_wants_content_parts_gets_them(chat, template):
    found = render(chat(template), [("system", "Be kind."), ("user", "Who is it?")], answer=True)
    assert found == "<system>Be kind.<user>Who is it?<assistant>"


@pytest.mark.parametrize("filter", ["upper", "tojson", "replace('i', 'j')", "truncate(5, true, '')"])
def test_a_template_that_changes_a_text_is_refused(chat, filter):
    with pytest.raises(InputError, match="(changes|leaves out) the user's text"):
        prompt_ids(chat("{% for m in messages %}{{ m.content | " + filter + " }}{% endfor %}"), 'it is "so" it is')


def test_white_space_at_the_ends_may_go(chat):
    model = chat("{% for m in messages %}<{{ m.content | trim }}>{% endfor %}")
    assert render(model, [("user", "  a b \n")], answer=False) == "<a b>"


def test_a_template_that_raises_is_one_sentence(chat):
    with pytest.raises(InputError, match=r"refuses the prompt \(no system here\)"):
        template = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here\nat all') }}"
        prompt_ids(chat(template + "{% endif %}{{ m.content }}{% endfor %}"), "hello", system="x")
    with pytest.raises(InputError, match="refuses the prompt"):
        prompt_ids(chat("{% for m in %}"), "hello")


DATES = ["{{ strftime_now('%d %b %Y') }}", "{% set now = strftime_now %}{{ now('%Y-%m-%d') }}", "{{ date_string }}"]


@pytest.mark.parametrize("printed", DATES)
def test_the_date_in_a_prompt_is_the_models_day_and_not_todays(chat, printed, monkeypatch):
    template = printed + TURN
    default, other = chat(template), chat(template, day=datetime.date(2031, 5, 1))
    assert uses_date(default) and not uses_date(chat(TURN))
    first = render(default, [("user", "hello")], answer=True)
    assert str(datetime.date.today().year) not in first
    assert ("2024" in first) == ("strftime" in printed)
    assert "2031" in render(other, [("user", "hello")], answer=True)


def test_a_template_with_a_day_of_its_own_keeps_it_by_default(chat):
    template = (
        "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ date_string }}" + TURN
    )
    assert render(chat(template), [("user", "x")], answer=True).startswith("26 Jul 2024<user>")
    assert DAY == datetime.date(2024, 7, 26)
    other = chat(template, day=datetime.date(2025, 1, 31))
    assert render(other, [("user", "x")], answer=True).startswith("31 Jan 2025<user>")


@pytest.mark.parametrize(
    "chance", ["{{ ['a', 'b'] | random }}", "{{ [['a', 'b']] | map('random') | join }}", "{{ lipsum(1) }}"]
)
def test_a_template_that_draws_at_random_is_refused(chat, chance):
    state = random.getstate()
    with pytest.raises(InputError, match="draws at random"):
        prompt_ids(chat(chance + TURN), "hello")
    random.setstate(state)
    assert prompt_ids(chat("{# random words #}" + TURN), "random") == prompt_ids(chat(TURN), "random")


def test_the_answers_header_is_there_where_the_template_writes_it_only_with_the_answer(chat):
    header = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    assert render(chat(header), [("user", "hello")], answer=True) == "<|user|>hello<|end|><|assistant|>"
    llama = (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
    )
    assert render(chat(llama), [("user", "hello")], answer=True) == "[INST] hello [/INST]"
    assert render(chat(header), [("user", "a"), ("assistant", "b")], answer=False) == (
        "<|user|>a<|end|><|assistant|>b<|end|>"
    )


def test_bos_stands_once_where_template_and_tokenizer_both_put_it(chat):
    model = chat("{{ bos_token }}" + TURN)
    assert prompt_ids(model, "hello").count(model.bos_id) == 1
    encode = model.tokenizer

    class Stubborn(types.SimpleNamespace):
        """Puts BOS in front whatever it is told."""

        def __call__(self, text, **_options):
            return {"input_ids": [encode.bos_token_id, *encode(text, add_special_tokens=False)["input_ids"]]}

    wanted = prompt_ids(model, "hello")
    model.tokenizer = Stubborn(
        chat_template=encode.chat_template,
        apply_chat_template=encode.apply_chat_template,
        bos_token=encode.bos_token,
        bos_token_id=encode.bos_token_id,
    )
    assert prompt_ids(model, "hello") == wanted


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["deepseek_v3", "gemma3", "llama3_1", "qwen3"])
def test_published_templates_are_written_as_transformers_writes_them(shared, name):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared(f"tokenizers/{name}"))
    model = types.SimpleNamespace(tokenizer=tokenizer, name=name, day=DAY, bos_id=tokenizer.bos_token_id)
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": " Who is Lily?\n"}]
    for some in (turns, turns[1:]):
        wanted = tokenizer.apply_chat_template(some, add_generation_prompt=True)["input_ids"]
        system = some[0]["content"] if len(some) > 1 else ""
        assert prompt_ids(model, some[-1]["content"], system=system) == list(wanted)

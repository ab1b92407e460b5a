"""Small chat templates in the shape of those that thinking models come with, and a model that has one of them."""

import copy

from tokenizers import AddedToken

_TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
_READY = "{% if add_generation_prompt %}<|assistant|>"

PLAIN = f"{_TURNS}{_READY}{{% endif %}}"
# Qwen3, SmolLM3: a switch that writes an empty block
QWEN = (
    "{% for m in messages %}{% set content = m.content %}{% if m.role == 'assistant' and '</think>' in content %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}<|{{ m.role }}|>{{ content }}<|end|>\n"
    "{% endfor %}"
    f"{_READY}{{% if enable_thinking is defined and enable_thinking is false %}}<think>\n\n</think>\n\n{{% endif %}}"
    "{% endif %}"
)
# DeepSeek-R1, QwQ: every answer begins inside a block
R1 = f"{{{{ bos_token }}}}{_TURNS}{_READY}<think>\n{{% endif %}}"
# the first R1: the model opens the block itself, the template only knows how to take it out
R1_ITSELF = (
    "{% for m in messages %}{% set content = m.content %}{% if m.role == 'assistant' and '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}<|{{ m.role }}|>{{ content }}{% endfor %}"
    f"{_READY}{{% endif %}}"
)
# DeepSeek-V3.1: a switch that opens a block or closes one that was never opened
V31 = (
    f"{{% if not thinking is defined %}}{{% set thinking = false %}}{{% endif %}}{_TURNS}"
    f"{_READY}{{{{ '<think>' if thinking else '</think>' }}}}{{% endif %}}"
)
# Granite: the switch changes the system message
GRANITE = "{% if thinking %}<|system|>Write your thoughts between <think></think>.<|end|>\n{% endif %}" + PLAIN
# Magistral: tags in brackets
MAGISTRAL = "[SYSTEM]First draft your thinking in [THINK]…[/THINK].[/SYSTEM]" + PLAIN
# Command A Reasoning
COHERE = (
    f"{_TURNS}{_READY}{{% if reasoning is defined and not reasoning %}}<|START_THINKING|><|END_THINKING|>{{% endif %}}"
    "{% endif %}"
)
# gpt-oss: thinking and answer in channels
CHANNELS = (
    "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}"
    "<|message|>{{ m.content }}<|end|>{% endfor %}"
    "{# thoughts of earlier turns (<|channel|>analysis<|message|>) are left out #}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
THINKING = {
    "Qwen3": QWEN,
    "R1": R1,
    "R1 that opens itself": R1_ITSELF,
    "V3.1": V31,
    "Granite": GRANITE,
    "Magistral": MAGISTRAL,
    "Cohere": COHERE,
    "channels": CHANNELS,
}


def with_template(model, template, tokens=()):
    """The model with another chat template, and `tokens` as tokens of their own, which are beyond its embedding: for
    encoding only."""
    changed = copy.copy(model)
    changed.tokenizer = copy.deepcopy(model.tokenizer)
    changed.tokenizer.chat_template = template
    if tokens:
        changed.tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in tokens])
    return changed

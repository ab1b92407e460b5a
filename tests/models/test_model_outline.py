"""What is known of a model before it is loaded, against the loaded model."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support.odd_models import save
from workbench.models.loading import load
from workbench.models.model_outline import facts, outline

TEXTS = ["The little girl saw a red ball.", "", "Zürich — 東京", "a" * 2000]


@pytest.mark.parametrize("name,context", [("llama", 64), ("gpt2", 128), ("gptj", 512), ("gpt_neox", 32)])
def test_the_outline_of_a_model_is_that_of_the_loaded_one(name, context, tmp_path):
    folder = save(tmp_path / "m", name, context=context)
    model, about = load(str(folder)), facts(str(folder))
    assert (about.layers, about.width, about.heads, about.context, about.vocabulary) == (
        model.n_layers,
        model.width,
        model.n_heads,
        context,
        model.vocab_size,
    )
    assert about.name == str(folder) and not about.chat and about.fits(context) and not about.fits(context + 1)


def test_texts_are_as_long_as_the_model_reads_them_whatever_the_tokenizer_file_cuts(tiny_llama, tmp_path):
    wanted = [len(ids) for ids in load(str(tiny_llama)).encode_all(TEXTS)]
    assert outline(str(tiny_llama)).lengths(TEXTS) == wanted and max(wanted) > 512
    folder = save(tmp_path / "m", "llama")
    file = folder / "tokenizer.json"
    cut = json.loads(file.read_text()) | {
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    }
    file.write_text(json.dumps(cut))
    assert outline(str(folder)).lengths(TEXTS) == wanted


def test_of_a_model_that_is_not_here_only_the_name_is_known():
    about = outline("nobody/has-this")
    assert facts("nobody/has-this") is None and about.name == "nobody/has-this" and about.context is None
    assert about.fits(10**9) and about.why_not(("tokenizer", "heads_apart")) is None and about.attention_interface


def test_a_chat_template_is_seen_in_either_place(tmp_path):
    folder = save(tmp_path / "m", "llama")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "{{ messages }}"}))
    assert outline(str(folder)).chat
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert outline(str(folder)).chat


def test_the_outline_of_an_organism_imports_no_torch():
    code = "import sys; from workbench.models.model_outline import outline as o; a = o('organism'); "
    code += "assert a.context and a.why_not(('tokenizer', 'heads_apart')) is None and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

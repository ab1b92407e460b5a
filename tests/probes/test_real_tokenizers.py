"""Every probe with its default data on a tiny random model with a real tokenizer, or with one built here in the manner
of the real ones: complete with tables that make sense, or one sentence that says what the model cannot do."""

from __future__ import annotations

import json
import string

import pytest
import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.support import tiny_llama
from workbench.core.errors import WorkbenchError
from workbench.models.loading import load
from workbench.runs import execution as runs

REAL = ("qwen3", "llama3_1", "llama2", "gemma3", "deepseek_v3")
SMALL = {
    "retrieval-heads": {"lengths": (1200,), "depths": (50,), "needles": 1, "max_new_tokens": 2, "mask_k": (0,)},
    "concept-depth": {"limit": 12, "sets": ("english/facts",), "shuffles": 1, "noise": False},
    "knowledge-conflict": {"keep": "all", "limit": 12, "prune_k": (1,), "random_draws": 1, "flow_items": 1},
    "data-selection": {"site": "resid_post.0", "resamples": 0, "baselines": ("neurons",)},
    "branching-factor": {"max_prompts": 2, "samples": 2, "max_new_tokens": 3},
    "representation-geometry": {"limit": 30, "draws": 10, "loss_rows": 1, "ablate": (2,), "random_draws": 1},
}  # of every probe, settings that take a second
TEMPLATES = ("retrieval-heads", "branching-factor", "data-selection")  # probes that take template=chat
CASES = [(name, "raw") for name in SMALL] + [(name, "chat") for name in TEMPLATES]


def save(folder, tokenizer):
    """A random Llama of width 32 with this tokenizer."""
    torch.manual_seed(0)
    words = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values()))
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    hf = LlamaForCausalLM(LlamaConfig(vocab_size=words, max_position_embeddings=2048, **shape, **ends))
    for parameter in hf.parameters():
        if parameter.ndim >= 2:
            parameter.data *= 6
    hf.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def byte_level() -> PreTrainedTokenizerFast:
    """In the manner of GPT-2 and Qwen: bytes, no BOS, and many words that nothing is made of."""
    merges = [*(("Ġ", letter) for letter in string.ascii_letters), ("h", "e"), ("Ġt", "he")]
    names = ["<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    made = Tokenizer(BPE({name: n for n, name in enumerate([*names, *(f"<unused{k}>" for k in range(20000))])}, merges))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")


def check(run, model, probe: str, template: str) -> None:
    """What was fed is text of this tokenizer, and the tables say something of it."""
    assert run.status == "complete"
    info = json.dumps({key: value for key, value in run.info.items() if key != "files"})
    assert "organism" not in info
    inputs = run.table("inputs")
    assert inputs.height
    bos = model.bos_id if model.prepends_bos else None
    for row in inputs.iter_rows(named=True):
        ids = row["ids"]
        assert ids and (bos is None or ids[:2] != [bos, bos])
        if template == "raw" and bos is not None:
            assert ids[0] == bos and bos not in ids[1:]
        assert "\N{REPLACEMENT CHARACTER}" not in model.decode(ids)
    if probe == "representation-geometry":
        last = run.table("layers").row(-1, named=True)
        assert 1 < last["rankme"] < 30 and run.table("ablation")["loss"].is_finite().all()
    elif probe == "retrieval-heads":
        for row in inputs.iter_rows(named=True):
            assert model.decode(row["ids"][row["span_start"] : row["span_end"]]).strip()
    elif probe == "knowledge-conflict":
        assert (inputs["memory_id"] != inputs["context_id"]).all()
    elif probe == "branching-factor":
        assert (run.table("prompts")["bf"] >= 1).all()
    elif probe == "concept-depth":
        assert run.table("layers")["accuracy"].is_between(0, 1).all()
    else:
        assert run.table("scores")["score"].is_finite().all()


def run_or_sentence(model, probe: str, template: str, tmp_path) -> None:
    config = SMALL[probe] | ({"template": template} if template != "raw" else {})
    if probe == "knowledge-conflict":  # which would read all essays after every pruning
        config["neutral"] = str(tmp_path / "neutral.txt")
        (tmp_path / "neutral.txt").write_text("The road goes down to the sea.\nNobody had seen the boat.\n")
    try:
        run = runs.execute(probe, model, config=config)
    except WorkbenchError as error:
        assert template == "chat" and "chat template" in str(error) and "\n" not in str(error), error
        assert model.tokenizer.chat_template is None
        return
    check(run, model, probe, template)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("built")
    made = {"bytes without BOS": byte_level(), "pieces with BOS": tiny_llama.tokenizer()}
    return {name: load(str(save(root / name.replace(" ", "-"), tokenizer))) for name, tokenizer in made.items()}


@pytest.mark.parametrize("probe, template", CASES)
@pytest.mark.parametrize("kind", ["bytes without BOS", "pieces with BOS"])
def test_a_probe_runs_with_default_data_on_a_tokenizer_of_another_manner(built, kind, probe, template, tmp_path):
    run_or_sentence(built[kind], probe, template, tmp_path)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """real(folder of a tokenizer) → a model with it; built once."""
    made: dict = {}

    def get(folder):
        if folder not in made:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            made[folder] = load(str(save(tmp_path_factory.mktemp("real") / folder.name, tokenizer)))
        return made[folder]

    return get


@pytest.mark.shared_data
@pytest.mark.parametrize("tokenizer", REAL)
@pytest.mark.parametrize("probe, template", CASES)
def test_a_probe_runs_with_default_data_on_a_real_tokenizer(real, shared, tokenizer, probe, template, tmp_path):
    run_or_sentence(real(shared(f"tokenizers/{tokenizer}")), probe, template, tmp_path)

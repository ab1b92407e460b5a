"""Texts from vLLM: its interface over our own sampler, and what it may do at its edges."""

import copy
import importlib.util
import json
import math
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch

from tests import virtual_accelerator as va
from workbench.core.errors import InputError
from workbench.engine.generate import sample
from workbench.engine.sampling import FIELDS, Rule
from workbench.engine.scoring import score
from workbench.engine.vllm import VllmWriter, with_statistics
from workbench.models.loading import wrap


def test_vllm_is_refused_with_a_sentence_where_it_is_not_installed(run, stories):
    if importlib.util.find_spec("vllm") is not None:
        assert run(stories, sampler="vllm").table("prompts")["bf"].min() >= 1
        return
    with pytest.raises(InputError, match="vLLM is not installed"):
        run(stories, sampler="vllm")


# What vLLM documents (docs.vllm.ai: vllm.LLM, Engine Arguments, vllm.SamplingParams): some names of arguments of the
# class itself, of the engine that it hands others on to, and of the sampling parameters.
OF_THE_CLASS = {
    "model",
    "tokenizer",
    "tensor_parallel_size",
    "dtype",
    "seed",
    "gpu_memory_utilization",
    "enforce_eager",
}
OF_THE_ENGINE = {"max_model_len", "max_num_seqs", "enable_prefix_caching", "enable_sleep_mode"}
OF_SAMPLING = {
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "max_tokens",
    "seed",
    "stop",
    "stop_token_ids",
    "logprobs",
}
DTYPES = {"auto", "half", "float16", "bfloat16", "float", "float32"}


@pytest.fixture
def fake_vllm(monkeypatch, stories):
    """vLLM's interface over our own sampler, which takes what vLLM takes: what it was asked for is kept; `spoil` may
    change the token ids of a sample. `calls`: with where the models that are `watched`
    were."""
    log = SimpleNamespace(opened=[], closed=0, asked=[], calls=[], spoil=lambda p, m, ids: ids, watched=[])
    own = wrap(copy.deepcopy(stories.hf), stories.tokenizer)  # vLLM has weights of its own

    def called(name):
        log.calls.append((name, *(str(model.device) for model in log.watched)))

    class LLM:
        def __init__(self, model, **options):
            assert options.keys() <= OF_THE_CLASS | OF_THE_ENGINE and options["dtype"] in DTYPES
            assert 0 < options["gpu_memory_utilization"] <= 1 and options["tensor_parallel_size"] >= 1
            called("open")
            log.opened.append(options)
            self.room, self.awake = options["max_model_len"], True
            self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=self.shutdown))

        def shutdown(self):
            log.closed += 1

        def sleep(self, level=1):
            assert level in (1, 2) and self.awake and log.opened[-1]["enable_sleep_mode"]
            self.awake = False
            called("sleep")

        def wake_up(self, tags=None):
            assert tags is None and not self.awake
            self.awake = True
            called("wake_up")

        def generate(self, prompts, sampling_params=None, *, use_tqdm=True, lora_request=None):
            assert self.awake and len(prompts) == len(sampling_params)
            called("generate")
            answers = []
            for p, (prompt, asked) in enumerate(zip(prompts, sampling_params)):
                log.asked.append(asked)
                ids = prompt["prompt_token_ids"]
                assert len(ids) + asked.max_tokens <= self.room
                rule = Rule(asked.temperature, asked.top_p, max(asked.top_k, 0), asked.min_p)
                found = sample(own, [ids], samples=asked.n, max_new_tokens=asked.max_tokens, rule=rule, seed=asked.seed)
                texts = [log.spoil(p, m, found.tokens(0, m)) for m in range(asked.n)]
                answers.append(
                    SimpleNamespace(
                        outputs=[
                            SimpleNamespace(
                                token_ids=t, finish_reason="stop" if t and t[-1] in stories.eos_ids else "length"
                            )
                            for t in texts
                        ]
                    )
                )
            return answers

    def sampling_params(**asked):
        assert asked.keys() <= OF_SAMPLING
        return SimpleNamespace(**asked)

    module = ModuleType("vllm")
    module.LLM, module.SamplingParams, module.__spec__ = LLM, sampling_params, ModuleSpec("vllm", None)
    monkeypatch.setitem(sys.modules, "vllm", module)
    return log


def test_vllm_writes_the_texts_and_one_engine_serves_a_whole_run(run, stories, fake_vllm, monkeypatch):
    monkeypatch.setattr("probes.branching_factor.conditions.MOST_ROWS", 6)  # one prompt per part
    found = run(stories, sampler="vllm", study="decoding", settings="top_p=0.9,top_p=0.8", samples=4, max_new_tokens=10)
    assert (len(fake_vllm.opened), fake_vllm.closed) == (1, 1)
    longest = max(map(len, found.table("inputs")["ids"].to_list()))
    asked = fake_vllm.opened[0]
    assert (asked["max_model_len"], asked["tensor_parallel_size"], asked["dtype"]) == (longest + 10, 1, "float32")
    assert [name for name, *_ in fake_vllm.calls] == [
        *("open", "generate", "generate", "generate", "sleep"),
        *("wake_up", "generate", "generate", "generate", "sleep"),
    ]
    assert len({asked.seed for asked in fake_vllm.asked}) == 3 and len(fake_vllm.asked) == 6
    assert not any("outside the nucleus" in w for w in found.info["warnings"])
    inputs, rule = found.table("inputs"), {"top_p=0.9": Rule(top_p=0.9), "top_p=0.8": Rule(top_p=0.8)}
    ids = dict(inputs.select("row", "ids").iter_rows())
    for r in found.table("samples").head(6).iter_rows(named=True):
        steps = score(stories, [ids[r["row"]]], [r["generated_ids"]], rule=rule[r["condition"]])[0]
        np.testing.assert_allclose(r["step_entropy"], steps[:, FIELDS.index("entropy")], atol=1e-4)


def test_the_plain_model_leaves_the_device_while_vllm_writes_and_reads_when_it_sleeps(stories, fake_vllm):
    prompts = [stories.encode("Once upon a time"), stories.encode("The dog")]
    asked = {"samples": 2, "max_new_tokens": 5, "seed": 3}
    expected = with_statistics(stories, prompts, VllmWriter(stories).write(prompts, **asked))
    fake_vllm.opened.clear()
    fake_vllm.calls.clear()
    fake_vllm.watched.append(stories)
    with va.present(memory=1 << 26) as module:
        try:
            stories.hf.to("virtual")
            held = module.memory_allocated()
            writer = VllmWriter(stories, memory=0.9, gpus=2)
            found = writer.write(prompts, **asked)
            assert found.steps.isnan().all() and module.memory_allocated() == 0
            writer.rest()
            assert module.memory_allocated() == held
            found = with_statistics(stories, prompts, found)
            writer.write(prompts, longest=20, **asked)  # needs room for more: a new engine
            writer.close()
            assert str(stories.device) == "virtual:0"
            filled = torch.zeros(12 << 20, device="virtual")  # 48 MiB of 64 are somebody else's
            VllmWriter(stories).write(prompts, **asked)
            assert fake_vllm.opened[-1]["gpu_memory_utilization"] == pytest.approx(0.95 * 16 / 64, abs=1e-3)
            del filled
        finally:
            stories.hf.to("cpu")
    assert [at for _, at in fake_vllm.calls[:3]] == ["cpu"] * 3  # away while it opens, writes and falls asleep
    assert [options["tensor_parallel_size"] for options in fake_vllm.opened[:2]] == [2, 2]
    assert [options["max_model_len"] for options in fake_vllm.opened[:2]] == [max(map(len, prompts)) + 5, 25]
    assert fake_vllm.opened[0]["gpu_memory_utilization"] == 0.9
    assert torch.equal(found.ids, expected.ids)
    torch.testing.assert_close(found.steps, expected.steps, atol=1e-5, rtol=1e-5, equal_nan=True)


def test_what_vllm_may_do_at_its_edges(run, stories, fake_vllm, tmp_path):
    """A token outside the nucleus, an empty text, a prompt near the end of the context and one that fills it."""
    rare = stories.encode("Lily")[-1]
    fake_vllm.spoil = lambda p, m, ids: [] if (p, m) == (1, 0) else [*ids[:2], rare] if (p, m) == (0, 0) else ids
    found = run(stories, sampler="vllm", samples=4, max_new_tokens=6, top_p=0.3)
    assert any("1 of" in w and "sampled tokens lie outside the nucleus" in w for w in found.info["warnings"])
    table = found.table("prompts")
    assert table["bf_nll"].is_finite().all() and found.summary["bf_nll"] == pytest.approx(table["bf_nll"].mean())
    first = found.table("samples").row(0, named=True)
    full = score(stories, found.table("inputs")["ids"].to_list()[:1], [first["generated_ids"]], rule=Rule(top_p=0.3))[0]
    assert full[2, FIELDS.index("logprob")] == -math.inf
    assert first["step_nll"][2] == pytest.approx(-float(full[2, FIELDS.index("logprob_top")]), rel=1e-4)
    empty = found.table("samples").filter((pl.col("prompt") == 1) & (pl.col("sample") == 0)).row(0, named=True)
    assert empty["length"] == 0 and empty["generated_ids"] == [] and empty["finish"] == "length"

    fake_vllm.spoil = lambda p, m, ids: ids
    word, files = stories.encode("dog")[-1:], {}
    for name, spare in (("near", 4), ("full", 0)):
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text(
            json.dumps({"prompt": stories.decode(word * (stories.context_length - 1 - spare))}) + "\n"
        )
    n = len(stories.encode(stories.decode(word * (stories.context_length - 5))))
    near = run(stories, data=files["near"], sampler="vllm", samples=2, max_new_tokens=30)
    assert fake_vllm.asked[-1].max_tokens == stories.context_length - n
    assert set(near.table("samples")["finish"]) <= {"context", "eos"} and "context" in set(
        near.table("samples")["finish"]
    )
    with pytest.raises(InputError, match="fills the context"):
        run(stories, data=files["full"], sampler="vllm", samples=2, max_new_tokens=30)

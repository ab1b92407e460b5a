"""Texts from vLLM: its interface over our own sampler, and what it may do at its edges."""

import importlib.util
import json
import math
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np
import polars as pl
import pytest

from workbench.core.errors import InputError
from workbench.engine.generate import sample
from workbench.engine.sampling import FIELDS, Rule
from workbench.engine.scoring import score


def test_vllm_is_refused_with_a_sentence_where_it_is_not_installed(run, stories):
    if importlib.util.find_spec("vllm") is not None:
        assert run(stories, sampler="vllm").table("prompts")["bf"].min() >= 1
        return
    with pytest.raises(InputError, match="vLLM is not installed"):
        run(stories, sampler="vllm")


@pytest.fixture
def fake_vllm(monkeypatch, stories):
    """vLLM's interface over our own sampler: what it was asked for is kept; `spoil` may change the token ids of a
    sample."""
    log = SimpleNamespace(opened=0, closed=0, memory=[], asked=[], spoil=lambda p, m, ids: ids)

    class LLM:
        def __init__(self, model, dtype, gpu_memory_utilization):
            log.opened += 1
            log.memory.append(gpu_memory_utilization)
            self.llm_engine = SimpleNamespace(
                engine_core=SimpleNamespace(shutdown=lambda: setattr(log, "closed", log.closed + 1))
            )

        def generate(self, prompts, params, use_tqdm):
            answers = []
            for p, (prompt, asked) in enumerate(zip(prompts, params)):
                log.asked.append(asked)
                ids = prompt["prompt_token_ids"]
                rule = Rule(asked.temperature, asked.top_p, max(asked.top_k, 0), asked.min_p)
                found = sample(
                    stories, [ids], samples=asked.n, max_new_tokens=asked.max_tokens, rule=rule, seed=asked.seed
                )
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

    module = ModuleType("vllm")
    module.LLM, module.SamplingParams, module.__spec__ = (
        LLM,
        lambda **asked: SimpleNamespace(**asked),
        ModuleSpec("vllm", None),
    )
    monkeypatch.setitem(sys.modules, "vllm", module)
    return log


def test_vllm_writes_the_texts_and_one_engine_serves_a_whole_run(run, stories, fake_vllm, monkeypatch):
    monkeypatch.setattr("probes.branching_factor.conditions.MOST_ROWS", 6)  # one prompt per part
    found = run(stories, sampler="vllm", study="decoding", settings="top_p=0.9,top_p=0.8", samples=4, max_new_tokens=10)
    assert (fake_vllm.opened, fake_vllm.closed, fake_vllm.memory) == (1, 1, [0.6])
    assert len({asked.seed for asked in fake_vllm.asked}) == 3 and len(fake_vllm.asked) == 6
    assert not any("outside the nucleus" in w for w in found.info["warnings"])
    inputs, rule = found.table("inputs"), {"top_p=0.9": Rule(top_p=0.9), "top_p=0.8": Rule(top_p=0.8)}
    ids = dict(inputs.select("row", "ids").iter_rows())
    for r in found.table("samples").head(6).iter_rows(named=True):
        steps = score(stories, [ids[r["row"]]], [r["generated_ids"]], rule=rule[r["condition"]])[0]
        np.testing.assert_allclose(r["step_entropy"], steps[:, FIELDS.index("entropy")], atol=1e-4)


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

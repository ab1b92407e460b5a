"""Sampling with vLLM, for models that Hugging Face generation is too slow for. Optional: `pip install
interpretability-workbench[vllm]`.

vLLM only writes the texts. Their statistics come from one teacher-forced pass of the plain model over the finished
texts, so they are exact and mean the same as those of `generate.sample`; vLLM's own log-probabilities (which tokens,
before or after truncation, depends on its version) are not used. A token that vLLM drew from outside the nucleus as
recomputed here has truncated log-probability −inf.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from workbench.core.errors import InputError
from workbench.engine.endings import Ends
from workbench.engine.generate import FINISH, Samples
from workbench.engine.passes import Pass, check_ids, with_pass
from workbench.engine.sampling import Rule
from workbench.engine.scoring import score
from workbench.models.devices import free_caches
from workbench.models.model import Model

_APART = 1_000_003  # vLLM seeds sample m of a request with seed + m: seeds of two prompts must not meet


def open_engine(model: Model, *, memory: float = 0.6) -> Any:
    """A vLLM engine for the model, taking at most `memory` of the GPU's; `close_engine` it. Raises InputError when vLLM
    is not installed or the model has no folder."""
    try:
        from vllm import LLM  # pyright: ignore[reportAttributeAccessIssue]  # optional: without it, this file is found
    except ImportError as error:
        raise InputError(
            "vLLM is not installed here; install the extra (pip install 'interpretability-workbench[vllm]') "
            "or use sampler=hf."
        ) from error
    if model.folder is None:
        raise InputError(f"vLLM loads models from a folder, and {model.name} is only in memory; use sampler=hf.")
    if model.adapter is not None:
        raise InputError(f"vLLM would load {model.name} without the adapter that is merged into it; use sampler=hf.")
    return LLM(model=str(model.folder), dtype=str(model.dtype).removeprefix("torch."), gpu_memory_utilization=memory)


def close_engine(engine: Any) -> None:
    """Give back what the engine holds; nobody may keep another reference to it."""
    core = getattr(getattr(engine, "llm_engine", None), "engine_core", None)
    if core is not None and hasattr(core, "shutdown"):
        core.shutdown()
    del engine, core
    free_caches()


@with_pass
def sample_vllm(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    engine: Any,
    samples: int,
    max_new_tokens: int,
    rule: Rule | None = None,
    seed: int = 0,
    prompt_keys: Sequence[int] | None = None,
    stop_strings: Sequence[str] = (),
    run: Pass,
) -> Samples:
    """As `generate.sample`, the texts written by `engine` (`open_engine`). A sample may be empty: length 0, no
    statistics.

    vLLM keeps prompt and text together within the context, one token less than `generate.sample` fits. Raises
    InputError for bad prompts and for one that fills the context."""
    from vllm import SamplingParams  # pyright: ignore[reportAttributeAccessIssue]  # as above

    if run.edits:
        raise InputError("Edits are hooks on the Hugging Face model; with them, use sampler=hf.")
    check_ids(model, prompts)
    ends = Ends.of(model, (), stop_strings, True)
    rule = rule or Rule()
    keys = range(len(prompts)) if prompt_keys is None else prompt_keys
    room = [
        max_new_tokens if model.context_length is None else min(max_new_tokens, model.context_length - len(ids))
        for ids in prompts
    ]
    if min(room) < 1:
        full = room.index(min(room))
        raise InputError(
            f"Prompt {full + 1} fills the context of {model.name} ({model.context_length} tokens), and vLLM "
            f"writes nothing then; use sampler=hf."
        )
    params = [
        SamplingParams(
            n=samples,
            temperature=rule.temperature,
            top_p=rule.top_p,
            top_k=rule.top_k or -1,
            min_p=rule.min_p,
            max_tokens=most,
            seed=(seed + key * _APART) % 2**31,
            stop=list(ends.strings) or None,
            stop_token_ids=sorted(ends.ids) or None,
        )
        for key, most in zip(keys, room)
    ]
    answers = engine.generate([{"prompt_token_ids": list(ids)} for ids in prompts], params, use_tqdm=False)
    rows = [
        (p, m, list(output.token_ids), output.finish_reason)
        for p, answer in enumerate(answers)
        for m, output in enumerate(answer.outputs)
    ]
    written = [row for row in rows if row[2]]
    steps = score(
        model,
        [prompts[p] for p, *_ in written],
        [ids for _, _, ids, _ in written],
        rule=rule,
        run=run,
    )
    longest = max([len(ids) for _, _, ids, _ in rows])
    shape = (len(prompts), samples)
    out = Samples.empty(*shape, longest)
    for (p, m, ids, _), found in zip(written, steps):
        out.ids[p, m, : len(ids)], out.steps[p, m, : len(ids)], out.lengths[p, m] = torch.tensor(ids), found, len(ids)
    for p, m, ids, reason in rows:
        ended = (
            "eos"
            if ids and ids[-1] in model.eos_ids
            else "stop"
            if reason == "stop"
            else "context"
            if len(ids) == room[p] < max_new_tokens
            else "length"
        )
        out.finish[p, m] = FINISH.index(ended)
    return out

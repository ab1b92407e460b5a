"""Sampling with vLLM, for models that Hugging Face generation is too slow for. Optional: `pip install interpretability-workbench[vllm]`.

vLLM only writes the texts. Their statistics come from one teacher-forced pass of the plain model over the finished texts, so they are
exact and mean the same as those of `generate.sample`; vLLM's own log-probabilities (which tokens, before or after truncation, depends
on its version) are not used. A token that vLLM drew from outside the nucleus as recomputed here has truncated log-probability −inf.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from workbench.capture import check_ids
from workbench.errors import InputError
from workbench.generate import FINISH, Samples
from workbench.models import Model
from workbench.scoring import FIELDS, Rule, score


def sample_vllm(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    samples: int,
    max_new_tokens: int,
    rule: Rule | None = None,
    seed: int = 0,
    prompt_keys: Sequence[int] | None = None,
    stop_strings: Sequence[str] = (),
    check: Callable[[], None] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Samples:
    """As `generate.sample`, the texts written by vLLM. Raises InputError when vLLM is not installed or the model has no folder."""
    try:
        from vllm import LLM, SamplingParams
    except ImportError as error:
        raise InputError("vLLM is not installed here; install the extra (pip install 'interpretability-workbench[vllm]') or use sampler=hf.") from error
    if model.folder is None:
        raise InputError(f"vLLM loads models from a folder, and {model.name} is only in memory; use sampler=hf.")
    check_ids(model, prompts)
    rule = rule or Rule()
    keys = range(len(prompts)) if prompt_keys is None else prompt_keys
    engine = LLM(model=str(model.folder), dtype=str(model.dtype).removeprefix("torch."), gpu_memory_utilization=0.6)
    params = [
        SamplingParams(n=samples, temperature=rule.temperature, top_p=rule.top_p, top_k=rule.top_k or -1, min_p=rule.min_p, max_tokens=max_new_tokens,
                       seed=(seed + key) % 2**31, stop=list(stop_strings) or None, stop_token_ids=list(model.eos_ids) or None)  # fmt: skip
        for key in keys
    ]
    answers = engine.generate([{"prompt_token_ids": list(ids)} for ids in prompts], params, use_tqdm=False)
    rows = [(p, m, list(output.token_ids), output.finish_reason) for p, answer in enumerate(answers) for m, output in enumerate(answer.outputs)]
    steps = score(model, [prompts[p] for p, *_ in rows], [ids for _, _, ids, _ in rows], rule=rule, check=check, progress=progress)
    longest = max(len(ids) for _, _, ids, _ in rows)
    shape = (len(prompts), samples)
    out = Samples(torch.full((*shape, longest), -1), torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long),
                  torch.full((*shape, longest, len(FIELDS)), torch.nan))  # fmt: skip
    for (p, m, ids, reason), found in zip(rows, steps):
        out.ids[p, m, : len(ids)], out.steps[p, m, : len(ids)], out.lengths[p, m] = torch.tensor(ids), found, len(ids)
        ended = "eos" if ids[-1] in model.eos_ids else "stop" if reason == "stop" else "length"
        out.finish[p, m] = FINISH.index(ended)
    return out

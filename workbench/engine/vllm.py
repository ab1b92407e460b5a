"""Sampling with vLLM, for models that Hugging Face generation is too slow for. Optional: `pip install
interpretability-workbench[vllm]`.

vLLM only writes the texts (`VllmWriter`). Their statistics come from one teacher-forced pass of the plain model over
the finished texts (`with_statistics`), so they are exact and mean the same as those of `generate.sample`; vLLM's own
log-probabilities (which tokens, before or after truncation, depends on its version) are not used. A token that vLLM
drew from outside the nucleus as recomputed here has truncated log-probability −inf.

The two copies of the weights take turns: while vLLM writes, the Hugging Face models are in the memory of the host;
while they read, vLLM sleeps (its weights in the memory of the host, its keys and values gone).
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import torch

from workbench.core.errors import InputError
from workbench.engine.endings import FINISH, Ends
from workbench.engine.generate import Samples
from workbench.engine.passes import Pass, check_ids, with_pass
from workbench.engine.sampling import Rule
from workbench.engine.scoring import score
from workbench.models import devices
from workbench.models.model import Model

MEMORY = 0.9  # of a device's memory, that vLLM may take
SPARE = 0.95  # of what is free, that it may take at most: it counts a share of the whole
_APART = 1_000_003  # vLLM seeds sample m of a request with seed + m: seeds of two prompts must not meet


class VllmWriter:
    """vLLM's engine of a model: opened at the first text, asleep while others need the device, `close` it.

    `aside`: models that leave the device while it writes (one that is spread over several stays where it is); `memory`:
    share of a device's memory; `gpus`: how many devices vLLM spreads the model over. Raises InputError for a model that
    has no folder, or an adapter that vLLM would not load."""

    def __init__(self, model: Model, *, aside: Sequence[Model] = (), memory: float = MEMORY, gpus: int = 1):
        if model.folder is None:
            raise InputError(f"vLLM loads models from a folder, and {model.name} is only in memory; use sampler=hf.")
        if model.adapter is not None:
            raise InputError(
                f"vLLM would load {model.name} without the adapter that is merged into it; use sampler=hf."
            )
        self.model, self.aside, self.memory, self.gpus = model, aside or (model,), memory, gpus
        self.longest = 0  # tokens of a prompt and its text, that the engine has room for
        self._engine: Any = None
        self._homes: dict[int, torch.device] | None = None  # where the models belong; None: they are there

    @with_pass
    def write(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        samples: int,
        max_new_tokens: int,
        rule: Rule | None = None,
        seed: int = 0,
        prompt_keys: Sequence[int] | None = None,
        stop_strings: Sequence[str] = (),
        longest: int = 0,
        run: Pass,
    ) -> Samples:
        """Texts as of `generate.sample`, without their statistics (NaN). A sample may be empty: length 0.

        `longest`: tokens of the longest prompt that is still to come, where it is known. vLLM keeps prompt and text
        together within the context, one token less than `generate.sample` fits. Raises InputError for bad prompts, for
        edits, and for a prompt that fills the context."""
        from vllm import SamplingParams  # pyright: ignore[reportAttributeAccessIssue]  # optional: see `_opened`

        model, rule = self.model, rule or Rule()
        if run.edits:
            raise InputError("Edits are hooks on the Hugging Face model; with them, use sampler=hf.")
        check_ids(model, prompts)
        ends, room = Ends.of(model, (), stop_strings, True), _room(model, prompts, max_new_tokens)
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
            for key, most in zip(range(len(prompts)) if prompt_keys is None else prompt_keys, room)
        ]
        self._wake(max(longest, *map(len, prompts)) + max_new_tokens)
        answers = self._engine.generate([{"prompt_token_ids": list(ids)} for ids in prompts], params, use_tqdm=False)
        out = Samples.empty(len(prompts), samples, max(room))
        for p, answer in enumerate(answers):
            for m, output in enumerate(answer.outputs):
                ids = list(output.token_ids)
                out.ids[p, m, : len(ids)], out.lengths[p, m] = torch.tensor(ids, dtype=torch.long), len(ids)
                cut = len(ids) == room[p] < max_new_tokens
                out.finish[p, m] = FINISH.index(_why_it_ended(model, ids, output.finish_reason, cut))
        return out.shortened()

    def rest(self) -> None:
        """Give the device back to the models, until the next text is to be written."""
        if self._homes is None:
            return
        self._engine.sleep(level=1)
        devices.free_caches()
        self._models_back()

    def close(self) -> None:
        """Give back all that vLLM holds."""
        core = getattr(getattr(self._engine, "llm_engine", None), "engine_core", None)
        if core is not None and hasattr(core, "shutdown"):
            core.shutdown()
        del core
        self._engine = None
        gc.collect()
        devices.free_caches()
        self._models_back()

    def _wake(self, longest: int) -> None:
        """Have an engine that is awake, with room for so many tokens."""
        longest = min(longest, self.model.context_length or longest)
        if self._engine is not None and longest > self.longest:
            self.close()
        if self._homes is None:
            self._models_away()
            if self._engine is not None:
                self._engine.wake_up()
        if self._engine is None:
            self._engine, self.longest = self._opened(longest), longest

    def _opened(self, longest: int) -> Any:
        try:
            from vllm import LLM  # pyright: ignore[reportAttributeAccessIssue]  # without it, this file is found
        except ImportError as error:
            raise InputError(
                "vLLM is not installed here; install the extra (pip install 'interpretability-workbench[vllm]') "
                "or use sampler=hf."
            ) from error
        home = (self._homes or {}).get(id(self.model), self.model.device)  # which it has left
        free, total = devices.memory(home)
        return LLM(
            model=str(self.model.folder),
            dtype=str(self.model.dtype).removeprefix("torch."),
            max_model_len=longest,
            tensor_parallel_size=self.gpus,
            gpu_memory_utilization=round(min(self.memory, SPARE * free / total), 3),
            enable_sleep_mode=True,
        )

    def _models_away(self) -> None:
        moved = [m for m in self.aside if not devices.is_cpu(m.device) and not _spread(m)]
        self._homes = {id(m): m.device for m in moved}
        for m in moved:
            _move(m, torch.device("cpu"))
        devices.free_caches()

    def _models_back(self) -> None:
        for m in self.aside:
            if self._homes and id(m) in self._homes:
                _move(m, self._homes[id(m)])
        self._homes = None


def _move(model: Model, device: torch.device) -> None:
    hf: Any = model.hf
    hf.to(device)


def _spread(model: Model) -> bool:
    return len({weight.device for weight in model.hf.parameters()}) > 1


def _room(model: Model, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[int]:
    """Tokens that may follow each prompt. Raises InputError where none may."""
    limit = model.context_length
    room = [max_new_tokens if limit is None else min(max_new_tokens, limit - len(ids)) for ids in prompts]
    if min(room) < 1:
        raise InputError(
            f"Prompt {room.index(min(room)) + 1} fills the context of {model.name} ({limit} tokens), and vLLM writes "
            f"nothing then; use sampler=hf."
        )
    return room


def _why_it_ended(model: Model, ids: list[int], reason: str | None, cut: bool) -> str:
    """One of FINISH for a text that vLLM ended; `cut`: the context has no room for more."""
    if ids and ids[-1] in model.eos_ids:
        return "eos"
    if reason == "stop":
        return "stop"
    return "context" if cut else "length"


@with_pass
def with_statistics(
    model: Model, prompts: Sequence[Sequence[int]], found: Samples, *, rule: Rule | None = None, run: Pass
) -> Samples:
    """The same samples with the statistics of each of their steps, from one pass of the plain model over them."""
    written = [(p, m) for p, m in found.lengths.nonzero().tolist()]
    texts = [found.tokens(p, m) for p, m in written]
    steps = score(model, [prompts[p] for p, _ in written], texts, rule=rule or Rule(), run=run)
    for (p, m), own in zip(written, steps):
        found.steps[p, m, : len(own)] = own
    return found

"""Steps of decoding that are recorded once, model and choice together, and run again as one launch each.

For devices with graphs, as `torch.cuda.CUDAGraph`: there a small batch waits for the host to launch its operations,
some hundred for every token. It pays after a few steps, so short texts are not recorded; nor are rows with edits or
hooks, which may look at the host. The step that is recorded runs first as it is, beside a plain one: where their scores
differ, where the model cannot take a mask made beforehand, or where the device refuses the recording, the plain steps
go on, and the log says why. The graph is held for as many rows as were recorded: rows that end are computed on, unread,
until half are gone or the memory is full; then what is left is recorded anew.

No graph of CUDA has run this here: tests run it on a virtual device under CUDA's rules of capture, and the steps
without a graph on a CPU.
"""

from __future__ import annotations

import inspect
import logging
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from workbench.core.wording import one_line
from workbench.engine.fixed_cache import FixedLayer, fixed, windows
from workbench.engine.kv_cache import keys_and_values
from workbench.engine.one_by_one import Decoding, OneByOne, on_host, steps_between_looks
from workbench.models.attention import hooks_of
from workbench.models.batching import sent
from workbench.models.devices import graphs
from workbench.models.float32 import EXACT
from workbench.models.model import Model
from workbench.models.running_pass import hooked

logger = logging.getLogger(__name__)
SHORTEST = 16  # steps to go for which a recording pays: it costs about three
SEGMENT = 256  # steps that the memory of a recording has room for: what is free is read, too


@dataclass(eq=False)
class _Begun:
    """What steps go on from. held: keys, values [B, KV, columns, D] and the window of every layer; real [B, columns] on
    the host; token [R] to be fed next; position [B, 1] of the one before it; keys [R, steps] of what is drawn."""

    held: list[tuple[torch.Tensor, torch.Tensor, int | None]]
    real: torch.Tensor
    token: torch.Tensor
    position: torch.Tensor
    keys: torch.Tensor | None


class RecordedSteps:
    """Steps on fixed memory. left: how many may be made at most."""

    def __init__(self, model: Model, how: Decoding, begun: _Begun, left: int):
        self.model, self.how, self.left = model, how, left
        self.replay: Any = None
        self._lay_out(begun)

    def _lay_out(self, begun: _Begun) -> None:
        """Memory for as many steps as there may be, SEGMENT at most."""
        device = begun.token.device
        self.room, self.made, self.pending = min(SEGMENT, self.left), 0, 0
        self.places = list(range(len(begun.token)))
        self.real, self.token, self.position = begun.real, begun.token.clone(), begun.position.clone()
        self.keys = begun.keys
        self.cache, self.columns = fixed(begun.held, begun.real, self.room)
        self.number = torch.full((1,), -1, dtype=torch.long, device=device)  # of the step at hand
        self.tokens = torch.zeros((self.room, len(self.token)), dtype=torch.long, device=device)
        self.found: torch.Tensor | None = None  # [steps, R, …], made by the first step

    @property
    def most(self) -> int:
        """Steps that can be made before the host looks."""
        every = steps_between_looks(self.token.device)
        return every if self.made == self.room else min(every, self.room - self.made)

    def run(self) -> torch.Tensor:
        """The operations of a step → scores [B, V]. Nothing in here looks at a number on the device."""
        self.number.add_(1)
        self.position.add_(1)
        if self.model.context_length is not None:  # rows that have ended would come to positions that there are not
            self.position.clamp_(max=self.model.context_length - 1)
        for columns in self.columns.values():
            columns.move()
        fed = self.token if self.how.sides == 1 else self.token.repeat(self.how.sides)
        scores = self.model.hf(**self._arguments(fed)).logits[:, -1]
        keys = None if self.keys is None else self.keys.index_select(1, self.number)[:, 0]
        token, found = self.how.choose(scores, keys)
        out = self.found = found.new_zeros((self.room, *found.shape)) if self.found is None else self.found
        out.index_copy_(0, self.number, found[None])
        self.token.copy_(token)
        self.tokens.index_copy_(0, self.number, token[None])
        return scores

    def _arguments(self, fed: torch.Tensor) -> dict[str, Any]:
        """What the model is called with: the mask is made already, one for every kind of layer."""
        masks = {window: columns.hidden for window, columns in self.columns.items()}
        mask: Any = next(iter(masks.values()))
        if len(masks) > 1:
            kinds = self.model.hf.config.get_text_config().layer_types
            layers: list[Any] = self.cache.layers
            mask = {kind: masks[layer.columns.window] for kind, layer in zip(kinds, layers, strict=True)}
        keep = {"logits_to_keep": 1} if "logits_to_keep" in self.model.accepts else {}
        return keep | {
            "input_ids": fed[:, None],
            "position_ids": self.position,
            "attention_mask": mask,
            "past_key_values": self.cache,
            "use_cache": True,
        }

    def first(self) -> torch.Tensor:
        """Make a step one operation at a time → scores [B, V]. What is recorded has to have run before."""
        scores = self.run()
        self.made, self.pending = 1, self.pending + 1
        return scores

    def record(self) -> None:
        """Record a step. Raises RuntimeError where the device refuses."""
        found = graphs(self.token.device)
        assert found is not None  # or nothing is recorded
        graph = found[0]()
        with _opened(found[1], graph):
            self.run()
        self.replay = graph.replay

    def step(self, alive: list[int]) -> None:
        """Make a step."""
        if self.made == self.room or 2 * len(self.places) <= len(self.token):
            self._again()
            return
        self.replay()
        self.made, self.pending = self.made + 1, self.pending + 1

    def _again(self) -> None:
        """Go on with the rows that are left, in new memory, and record that."""
        rows = [k + side * len(self.token) for side in range(self.how.sides) for k in self.places]
        index, places = sent([torch.tensor(rows), torch.tensor(self.places)], self.token.device)
        layers: list[FixedLayer] = self.cache.layers  # pyright: ignore[reportAssignmentType] - `fixed` makes them so
        self.replay, self.left = None, self.left - self.made
        self._lay_out(
            _Begun(
                [(*layer.held(self.made, index), layer.columns.window) for layer in layers],
                torch.nn.functional.pad(self.real, (0, self.made), value=True)[rows],
                self.token[places],
                self.position[index],
                None if self.keys is None else self.keys[places, self.made :],
            )
        )
        self.first()
        self.record()

    def look(self) -> tuple[list[list[int]], torch.Tensor]:
        """The tokens of the pending steps, and what was found [steps, rows, …]."""
        assert self.found is not None  # a step was made
        steps = slice(self.made - self.pending, self.made)
        tokens, found = on_host(self.found[steps], self.tokens[steps])
        self.pending = 0
        return [[step[place] for place in self.places] for step in tokens], found[:, self.places]

    def keep(self, places: list[int]) -> None:
        """Go on with these of the rows looked at."""
        self.places = [self.places[k] for k in places]


def pays(steps: OneByOne, left: int, alive: list[int]) -> bool:
    """Whether `left` steps of the texts `alive` are worth recording, and nothing hangs on the model that may look."""
    model = steps.rows.model
    if left < SHORTEST or graphs(steps.scores.device) is None or steps.how.edits(alive):
        return False
    attentions = (
        [hooks_of(model.attention(layer)) for layer in range(model.n_layers)] if model.attention_interface else []
    )
    watched = any(hooks.readers or hooks.edits for hooks in attentions)
    return not watched and not any(hooked(module) for module in model.hf.modules())


def recorded(steps: OneByOne, left: int, alive: list[int]) -> OneByOne | RecordedSteps:
    """Make the next step, and record it, for `left` steps at most with that one; → what makes the steps after it:
    `steps` itself where it cannot be recorded, for which the log has the reason."""
    ours, scores, why_not = None, None, _unfit(steps)
    if why_not is None:
        try:
            ours = RecordedSteps(steps.rows.model, steps.how, _begun(steps), left)
            scores = ours.first()
        except Exception as error:  # of a model that takes no such mask, or of memory for a second cache
            ours, why_not = None, one_line(error)
    steps.step(alive)
    if ours is not None and scores is not None:
        if not _close(scores, steps.scores):
            why_not = "it gives other scores with a mask made beforehand"
        else:
            try:
                ours.record()
                steps.rows.cache.layers.clear()  # what it holds is held twice
                return ours
            except RuntimeError as error:  # of what waits for the device
                why_not = one_line(error)
    _say(f"Steps of {steps.rows.model.name} are launched one operation at a time: {why_not}")
    return steps


def _unfit(steps: OneByOne) -> str | None:
    """Why a model's steps cannot be made on fixed memory, as far as is known beforehand."""
    model, kinds = steps.rows.model, windows(steps.rows.cache)
    if kinds is None:
        return "its cache has layers of other kinds, or on several devices."
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return "it runs in several processes, which would have to record alike."
    if model.sliding != any(window is not None for window in kinds):
        return "its windows are not those of its cache."
    if not model.mask_free or model.rotation_limit is not None:
        return "its positions depend on the mask or on the length of the pass."
    return model.lacks("blocks_run_once")


def _begun(steps: OneByOne) -> _Begun:
    rows, kinds = steps.rows, windows(steps.rows.cache)
    assert kinds is not None  # or it is unfit
    stop, layers = rows.columns, rows.cache.layers
    return _Begun(
        [(*keys_and_values(layer), window) for layer, window in zip(layers, kinds, strict=True)],
        rows.real[:, :stop],
        steps.token,
        rows.positions[:, stop - 1 : stop],
        None if rows.keys is None else rows.keys[:, stop + 1 - rows.width :].contiguous(),
    )


def _close(found: torch.Tensor, plain: torch.Tensor) -> bool:
    tolerance = 1e-4 if plain.dtype in EXACT else 5e-2
    far = (found.float() - plain.float()).nan_to_num(0.0, 0.0, 0.0).abs().amax()
    return bool(far <= tolerance * plain.float().nan_to_num(0.0, 0.0, 0.0).abs().amax())


def _opened(opener: Any, graph: Any) -> AbstractContextManager:
    """The block that a graph is captured in; other threads may go on using the device meanwhile."""
    mode = {"capture_error_mode": "thread_local"}
    return opener(graph, **mode if "capture_error_mode" in inspect.signature(opener).parameters else {})


@cache
def _say(sentence: str) -> None:
    """Into the log, once."""
    logger.warning(sentence)

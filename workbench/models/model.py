"""A loaded causal LM: the plain Hugging Face model, its tokenizer, its sites, its fingerprint.

The model that runs is the Hugging Face one (SDPA, key/value cache, `device_map`), never a re-implementation.
"""

from __future__ import annotations

import datetime
import hashlib
import inspect
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from workbench.core.errors import InputError
from workbench.core.wording import one_line
from workbench.models.adapters import Adapter, fingerprint_files, merge
from workbench.models.architecture import Anatomy, output_weight, weight_of
from workbench.models.batching import Batch
from workbench.models.devices import is_cpu
from workbench.models.facts import ModelFacts
from workbench.models.float32 import EXACT, in_float32, unembedded
from workbench.models.load_options import DAY
from workbench.models.running_pass import PassPositions, positions_after, running
from workbench.models.sites import Site
from workbench.models.text_side import TextSide

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from workbench.models.memory import Footprint

LONG = 1024  # tokens of a text, where a batch is planned without one at hand
DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "float64": torch.float64,
}


@dataclass(eq=False)
class Model(TextSide):
    """A loaded causal LM. Heads are query heads; layers and heads count from 0."""

    hf: PreTrainedModel
    tokenizer: Any  # of transformers; None where the model has none
    name: str
    revision: str | None
    folder: Path | None
    anatomy: Anatomy
    attention_interface: bool
    prepends_bos: bool
    adapter: Adapter | None = None  # merged into the weights
    day: datetime.date = DAY  # what a chat template that prints the date is told
    warnings: tuple[str, ...] = ()  # what a run on this model has to say of it

    @property
    def n_layers(self) -> int:
        return len(self.anatomy.blocks)

    @property
    def n_heads(self) -> int:
        return self.anatomy.n_heads

    @property
    def n_kv_heads(self) -> int:
        return self.anatomy.n_kv_heads

    @property
    def d_head(self) -> int:
        return self.anatomy.d_head

    @property
    def width(self) -> int:
        return self.anatomy.width

    @property
    def architecture(self) -> str:
        return type(self.hf).__name__

    @property
    def vocab_size(self) -> int:
        return int(weight_of(self.anatomy.unembed).shape[0])

    @cached_property
    def context_length(self) -> int | None:
        """The longest sequence the model was configured for, in tokens; None when its config does not say."""
        config = self.hf.config.get_text_config()
        for name in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"):
            if getattr(config, name, None):
                return int(getattr(config, name))
        return None

    @property
    def device(self) -> torch.device:
        """Where the token ids go (with several devices: the embedding's)."""
        return weight_of(self.hf.get_input_embeddings()).device

    @property
    def dtype(self) -> torch.dtype:
        found = weight_of(self.anatomy.unembed).dtype
        return found if found.is_floating_point else self.hf.dtype  # quantised weights compute in another

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Every id that ends a generation: the tokenizer's and those of the generation config."""
        found = [getattr(self.tokenizer, "eos_token_id", None)]
        configured = getattr(getattr(self.hf, "generation_config", None), "eos_token_id", None)
        found += configured if isinstance(configured, list) else [configured]
        return tuple(sorted({int(i) for i in found if i is not None and int(i) < self.vocab_size}))

    @property
    def pad_id(self) -> int:
        """An id to pad with; never seen by real tokens, so any will do where the tokenizer has none."""
        found = getattr(self.tokenizer, "pad_token_id", None)
        return int(found) if found is not None and found < self.vocab_size else 0

    def kv_group(self, head: int) -> int:
        """The key/value head that query head `head` reads."""
        return head // (self.n_heads // self.n_kv_heads)

    @property
    def sliding(self) -> bool:
        """Some layer attends over a window of the last tokens only; its window counts columns, so paddings may not
        stand inside."""
        config = self.hf.config.get_text_config()
        kinds = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None)  # the latter: GPT-Neo
        if kinds:
            return any("sliding" in kind or "chunked" in kind or kind == "local" for kind in kinds)
        return (
            bool(getattr(config, "sliding_window", None)) and getattr(config, "use_sliding_window", True) is not False
        )

    @property
    def facts(self) -> ModelFacts:
        """What holds of the model's forward pass, and why not where it does not."""
        return self.anatomy.facts

    def require(self, *facts: str, for_what: str, layers: Iterable[int] | None = None) -> None:
        """Raise InputError, with the reason, where one of the `ModelFacts` named does not hold (in these layers)."""
        self.anatomy.require(*facts, for_what=for_what, layers=layers)

    def lacks(self, *facts: str, layers: Iterable[int] | None = None) -> str | None:
        """Why one of the `ModelFacts` named does not hold (in these layers); None where all do."""
        wanted = None if layers is None else list(layers)
        return next((reason for fact in facts if (reason := self.facts.why_not(fact, wanted))), None)

    def heads(self) -> list[tuple[int, int]]:
        """Every (layer, head)."""
        return [(layer, head) for layer in range(self.n_layers) for head in range(self.n_heads)]

    def check_heads(self, heads: Iterable[tuple[int, int]]) -> None:
        """Raise InputError for a (layer, head) that the model does not have."""
        for layer, head in heads:
            if not (0 <= layer < self.n_layers and 0 <= head < self.n_heads):
                raise InputError(
                    f"Head {layer}.{head} does not exist: {self.name} has layers 0–{self.n_layers - 1} and "
                    f"heads 0–{self.n_heads - 1}."
                )

    # modules and weights

    def module(self, site: Site | str) -> tuple[nn.Module, str]:
        """The raw Hugging Face module that carries `site`, and "input" or "output"."""
        return self.anatomy.module(Site.parse(site))

    def site_size(self, site: Site) -> int:
        """Numbers per token at a site."""
        if site.kind == "logits":
            return self.vocab_size
        if site.kind == "head_out":
            return self.d_head if site.head is not None else self.n_heads * self.d_head
        if site.kind == "mlp_hidden":
            return int(weight_of(self.module(site)[0]).numel() // self.width)
        return self.width

    def attention(self, layer: int) -> nn.Module:
        return self.anatomy.blocks[layer].attention

    def o_proj(self, layer: int) -> nn.Module:
        return self.anatomy.blocks[layer].o_proj

    def W_O(self, layer: int) -> torch.Tensor:
        """Output projection by head [H, d_head, width]: head h writes head_out[h] @ W_O[h] (before any post-norm)."""
        return output_weight(self.o_proj(layer), self.n_heads)

    @property
    def final_norm(self) -> nn.Module:
        return self.anatomy.final_norm

    @property
    def unembed(self) -> nn.Module:
        return self.anatomy.unembed

    @property
    def logit_scale(self) -> float | None:
        """What the unembedding's scores are multiplied by, as the config says (Cohere, Granite, Falcon-H1)."""
        config = self.hf.config.get_text_config()
        for name in ("logit_scale", "lm_head_multiplier"):
            if isinstance(factor := getattr(config, name, None), (int, float)):
                return float(factor)
        divisor = getattr(config, "logits_scaling", None)
        return 1 / divisor if isinstance(divisor, (int, float)) and divisor else None

    @property
    def low_precision(self) -> bool:
        """Whether its own scores are rounded to fewer bits than differences of them need."""
        return self.dtype not in EXACT

    def normed(self, residual: torch.Tensor) -> torch.Tensor:
        """Residual vectors [..., width] after the final norm, in float32 at least, whatever the dtype of the weights.

        Raises InputError for a model whose final norm does not read its residual stream."""
        self.require("final_norm_ends_stream", for_what="what is read off its residual stream")
        if self.low_precision:
            return in_float32(self.final_norm, residual)
        weight = weight_of(self.unembed)
        return self.final_norm(residual.to(weight.device, weight.dtype))

    def logits_from(self, residual: torch.Tensor, *, normed: bool = False) -> torch.Tensor:
        """Final norm (unless `normed`), unembedding and soft-cap of residual vectors [..., width] → [..., V] float32;
        computed in float32 whatever the dtype of the weights (but for an unembedding that is not a plain linear map,
        which computes in its own).

        Raises InputError for a model whose scores are not that."""
        self.require("logits_unembedded", for_what="scores that are read off its residual stream")
        hidden = residual if normed else self.normed(residual)
        if self.low_precision:
            scores = unembedded(self.unembed, hidden, self.dtype)
        else:
            weight = weight_of(self.unembed)
            scores = self.unembed(hidden.to(weight.device, weight.dtype)).float()
        if self.logit_scale is not None:
            scores = scores * self.logit_scale
        return (
            scores if self.anatomy.softcap is None else self.anatomy.softcap * torch.tanh(scores / self.anatomy.softcap)
        )

    # running

    def forward(
        self,
        batch: Batch,
        *,
        cache=None,
        past: Batch | None = None,
        here: PassPositions | None = None,
        last_logits: int = 0,
        use_cache: bool = False,
    ):
        """One forward pass of the plain model over `batch`, with positions explicit; returns the Hugging Face output.

        With a `cache`, `batch` continues it: its position_ids count on and `past` describes the cached columns. `here`:
        both together, for who has laid them out already. `last_logits` keeps the scores of that many last columns only
        (left padding); 0 keeps all."""
        here = here or positions_after(batch, past)
        whole = here.whole or batch
        self._check_rotation(whole, cache)
        arguments = self.arguments(batch, cache=cache, whole=whole, last_logits=last_logits, use_cache=use_cache)
        with running(here):
            return self.hf(**arguments)

    def arguments(
        self, batch: Batch, *, cache=None, whole: Batch | None = None, last_logits: int = 0, use_cache: bool = False
    ) -> dict[str, object]:
        """What `forward` calls the Hugging Face model with. `whole`: the batch and what was read before it."""
        whole = whole or batch
        extra: dict[str, object] = {"position_ids": batch.position_ids} if "position_ids" in self.accepts else {}
        if last_logits and "logits_to_keep" in self.accepts:
            extra["logits_to_keep"] = int(last_logits)
        if cache is not None or use_cache:
            extra |= {"past_key_values": cache, "use_cache": True}
        else:
            extra["use_cache"] = False
        # Padding to the right of a causal model is never seen: no mask, fast kernels. A cache or left padding needs the
        # mask.
        if batch.side == "left" or cache is not None or not self.mask_free:
            if whole.padded or not self.mask_free:
                extra["attention_mask"] = whole.mask.long()
        else:  # padding counts on: positions that start again would be taken for packed sequences, and get a mask
            extra["position_ids"] = torch.arange(batch.ids.shape[1], device=batch.ids.device).expand_as(batch.ids)
            if self.attention_interface and not is_cpu(batch.ids.device):
                # without a mask transformers looks whether positions start again, which waits for the device; our
                # attention knows that there is nothing to hide
                extra["attention_mask"] = torch.ones_like(batch.ids)
        return {"input_ids": batch.ids, **extra}

    @cached_property
    def rotation_limit(self) -> int | None:
        """The length beyond which rotary frequencies depend on the longest row of the pass (longrope, dynamic NTK);
        None: never."""
        config = self.hf.config.get_text_config()
        found = getattr(config, "rope_parameters", None) or {}
        limits = []
        for rope in [found, *(v for v in found.values() if isinstance(v, dict))]:
            if rope.get("rope_type") in ("longrope", "dynamic"):
                limits.append(
                    rope.get("original_max_position_embeddings")
                    or getattr(config, "original_max_position_embeddings", None)
                    or self.context_length
                )
        return min(limits) if limits else None

    def _check_rotation(self, whole: Batch, cache) -> None:
        """Refuse passes whose numbers would depend on the company: Hugging Face picks one set of frequencies for the
        whole batch, and keys that are cached already keep those they were computed with. `whole`: with what is
        cached."""
        limit = self.rotation_limit
        if limit is None or max(whole.sizes) <= limit:
            return
        if cache is not None:
            raise InputError(
                f"{self.name} rotates positions by the length of the whole text beyond {limit} tokens, which "
                f"cached keys cannot follow; use shorter texts."
            )
        if len(set(whole.sizes)) > 1:
            raise InputError(
                f"{self.name} rotates positions by the longest text of a batch beyond {limit} tokens; run "
                f"these texts one by one."
            )

    def rows_at_once(self, lengths: Sequence[int], wanted: int) -> int:
        """How many texts of these lengths may share a pass: `wanted`, or 1 where they would change each other's
        numbers."""
        return 1 if self.rotation_limit is not None and max(lengths, default=0) > self.rotation_limit else wanted

    def tokens_at_once(self, wanted: int = 0) -> int:
        """Tokens in one batch: `wanted`, or for 0 what suits the device: few on a CPU, whose caches are small, for each
        of its threads; on an accelerator what has room."""
        from workbench.models.memory import usual_tokens

        return wanted or self.planned_tokens(usual_tokens(self.device.type), longest=LONG)

    def planned_tokens(self, usual: int, *, longest: int, caches: bool = False, captured: int = 0) -> int:
        """Tokens of one batch of rows of at most `longest` tokens: the `usual` ones on a CPU; on an accelerator what
        has room beside what is there already (`memory.tokens_that_fit`), over the devices that the model is spread
        over. `caches`: rows are decoded, with their keys and values; `captured`: numbers kept of each row.

        A model whose code needs numbers to run is given the usual ones."""
        if is_cpu(self.device) or self._footprint is None:
            return usual
        from workbench.models.memory import tokens_that_fit
        from workbench.models.precision import free_bytes

        devices = {weight.device for weight in self.hf.parameters() if weight.device.type not in ("cpu", "meta")}
        free = min(map(free_bytes, devices)) * len(devices)
        asked = {"longest": longest, "usual": usual, "caches": caches, "captured": captured}
        return tokens_that_fit(self._footprint, free, **asked)

    @cached_property
    def _footprint(self) -> Footprint | None:
        """What rows of tokens take of a device's memory, reckoned from shapes alone; None where the code of the model
        needs numbers to run."""
        from workbench.models.memory import footprint_of_loaded

        try:
            return footprint_of_loaded(self.hf, self.dtype)
        except Exception as error:  # modelling code raises whatever it likes
            logging.getLogger(__name__).debug("no footprint of %s: %s", self.name, one_line(error))
            return None

    @cached_property
    def accepts(self) -> set[str]:
        """Names of what the Hugging Face model's forward takes."""
        return set(inspect.signature(self.hf.forward).parameters)

    @cached_property
    def mask_free(self) -> bool:
        """ALiBi models build their biases from the mask, so they always get one; so do those that take no
        position_ids."""
        return "position_ids" in self.accepts and not getattr(self.hf.config, "alibi", False)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the config and the weights: of the files where the model came from a folder (`load` takes
        it before anything else can happen to them), else of the tensors."""
        if self.folder is not None:
            return fingerprint_files(self.folder, hf=self.hf, adapter=self.adapter)
        digest = hashlib.sha256(self.hf.config.to_json_string().encode())
        for key, value in sorted(self.hf.state_dict().items()):
            digest.update(key.encode() + value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def bridge(self):
        """A TransformerLens `TransformerBridge` around a fresh copy of this model (booting one replaces the modules it
        is given)."""
        from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
        from transformers import AutoModelForCausalLM

        if self.folder is None or self.tokenizer is None:
            raise InputError(f"A bridge needs a model with a folder and a tokenizer; {self.name} has none.")
        copy: Any = AutoModelForCausalLM.from_pretrained(self.folder, dtype=self.dtype, attn_implementation="eager")
        copy = copy.to(self.device).eval()
        if self.adapter is not None:
            copy = merge(copy, self.adapter, name=self.name)
        return build_bridge_from_module(
            copy, self.architecture, hf_config=copy.config, tokenizer=self.tokenizer, model_name=self.name
        )

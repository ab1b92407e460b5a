"""What a run can be told, and the papers to cite."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from workbench.core.column_names import column_map, columns_option
from workbench.core.prompt_options import (
    check_prompt_options,
    system_option,
    template_args_option,
    template_option,
    thinking_option,
)
from workbench.core.registry import option

BIBTEX = """@article{zhong2024beyond,
  title={Beyond English-Centric LLMs: What Language Do Multilingual Language Models Think in?},
  author={Zhong, Chengzhi and Cheng, Fei and Liu, Qianying and Jiang, Junfeng and Wan, Zhen and Chu, Chenhui and
    Murawaki, Yugo and Kurohashi, Sadao},
  journal={arXiv preprint arXiv:2408.10811},
  year={2024}
}
@inproceedings{wendler2024llamas,
  title={Do Llamas Work in English? On the Latent Language of Multilingual Transformers},
  author={Wendler, Chris and Veselovsky, Veniamin and Monea, Giovanni and West, Robert},
  booktitle={Annual Meeting of the Association for Computational Linguistics},
  year={2024},
  note={arXiv:2402.10588}
}"""
TASKS = ("translation", "repetition", "cloze")
READOUTS = ("word", "first", "set")
LENSES = ("logit", "tuned")
ESSAYS = Path(__file__).parents[1] / "essays.txt"
PAIR = '{source}: "{word}" - {target}: "{answer}"'
CLOZE = '{clue}: "{answer}"'
SLOTS = {"pair_form": ("source", "word", "target", "answer"), "cloze_form": ("clue", "answer")}


@dataclass(frozen=True)
class Config:
    tasks: tuple[str, ...] = option(
        TASKS, "what is asked for: translation, repetition of a word, cloze (a clue); cloze where the data have clues"
    )
    languages: tuple[str, ...] = option(
        (), "columns of the data that are languages, the pivot first; none: all that the tokenizer can write"
    )
    pairs: tuple[str, ...] = option(
        (),
        "translations, each as source:target; none: from the second language into the third and into the last, or from "
        "the first into the second where there are only two",
    )
    shots: int = option(4, "examples in front of every question, of words that are not measured", low=0, high=64)
    lens: str = option(
        "logit",
        "how layers are read: logit (final norm and unembedding), tuned (a linear translator of each layer before "
        "them, fitted on other words' prompts), or both",
        choices=("logit", "tuned", "both"),
    )
    translator_texts: str = option(
        "prompts",
        "what the translators are fitted on: prompts (the same tasks between all languages, of words that are not "
        "measured), or a text file",
        file=True,
    )
    translator_tokens: int = option(
        4096, "tokens that the translators are fitted on, a fifth of which chooses the ridge", low=64, high=10_000_000
    )
    alternatives: str = option(
        "sum",
        "words of one language that a cell of the data gives as a|b count together (sum), or the likeliest (max)",
        choices=("sum", "max"),
    )
    shared: str = option(
        "exclude",
        "tokens that belong to words of several languages: exclude, or report, as the languages 'shared' and 'Han'",
        choices=("exclude", "report"),
    )
    fit_share: float = option(
        0.3,
        "share of the concepts that give examples, translators and directions and are not measured",
        low=0.1,
        high=0.9,
    )
    limit: int = option(1000, "how many concepts to use, from the first row on", low=4, high=1_000_000)
    show: str = option(
        "word",
        "the read-out that summary and figures show: word (all tokens), first (its first token), set (all tokens that "
        "begin it)",
        choices=READOUTS,
    )
    steer_layers: str | tuple[int, ...] = option(
        "auto",
        "layers at which the direction between two languages is added: auto (five, evenly), none, or their numbers",
        choices=("auto", "none"),
        low=0,
        high=10_000,
    )
    steer_to: str = option("auto", "the language that answers are steered to; auto: the first that is not the target")
    strength: float = option(1.0, "how many times the direction is added", low=0, high=1000)
    steer_rows: int = option(40, "measured words whose answers are steered", low=1, high=100_000)
    random_draws: int = option(10, "random directions of the same length at the same place", low=2, high=10_000)
    draws: int = option(
        1000, "bootstrap resamples of the concepts, for crossing layers and leads", low=100, high=100_000
    )
    columns: tuple[str, ...] = columns_option("concept:word")
    labels: tuple[str, ...] = option(
        (), "what a language is called in prompts, each as column:name; those that ship have names of their own"
    )
    pair_form: str = option(PAIR, "a line of translation or repetition, with {source}, {word}, {target} and {answer}")
    cloze_form: str = option(CLOZE, "a line of cloze, with {clue} and {answer}")
    template: str = template_option("raw")
    system: str = system_option()
    thinking: str = thinking_option("off")
    template_args: tuple[str, ...] = template_args_option()
    max_tokens: int = option(8192, "tokens in one batch of prompts", low=1)

    def __post_init__(self) -> None:
        column_map(self.columns, ("concept",))
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown or not self.tasks:
            said = f"'{unknown[0]}' is none of the tasks" if unknown else "'tasks' is empty"
            raise ValueError(f"{said}; choose of {', '.join(TASKS)}")
        for pair in self.pairs:
            source, colon, target = pair.partition(":")
            if not (source and colon and target) or source == target:
                raise ValueError(f"'pairs' takes source:target, two languages, not '{pair}'")
        for entry in self.labels:
            if not all(entry.partition(":")):
                raise ValueError(f"'labels' takes column:name, not '{entry}'")
        for name, slots in SLOTS.items():
            text = getattr(self, name)
            if any(text.count(f"{{{slot}}}") != 1 for slot in slots) or not text.partition("{answer}")[0].strip():
                raise ValueError(f"'{name}' needs {', '.join(f'{{{slot}}}' for slot in slots)}, once each")
            if max(text.find(f"{{{slot}}}") for slot in slots) != text.find("{answer}"):
                raise ValueError(f"'{name}' has something to fill in after {{answer}}, which comes last")
        if self.translator_texts != "prompts" and "tuned" not in self.lenses:
            raise ValueError(
                "'translator_texts' is read with lens=tuned or lens=both only; set that too, or leave it out"
            )
        check_prompt_options(self)

    @property
    def lenses(self) -> tuple[str, ...]:
        """The lenses that are read, in their order."""
        return LENSES if self.lens == "both" else (self.lens,)

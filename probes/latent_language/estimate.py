"""What a run will take: prompts and tokens, from its config and data; and the settings of a short run."""

from __future__ import annotations

from pathlib import Path

from probes.latent_language.config import Config
from probes.latent_language.questions import label, tasks_of
from probes.latent_language.word_lists import WordList, read_words
from workbench.core.errors import InputError
from workbench.models.model_outline import Facts
from workbench.runs.cost import Plan

WORD = 3  # tokens of a word that are fed beside its prompt
ORGANISM = {"tasks": ("cloze",), "cloze_form": "{clue} {answer}", "shots": 0}  # how its world writes


def estimate(config: Config, data: Path | None, model: Facts) -> Plan:
    """Every prompt once with the words of all languages and of the unrelated concept behind it, and the steered
    prompts once for each direction and layer."""
    words = read_words(config, data)
    tasks = tasks_of(words, config)
    measured = max(1, round(len(words.concepts) * (1 - config.fit_share)))
    length = max(model.lengths([_text(words, task.source, task.target, config.shots, config) for task in tasks]))
    branches = 2 * len(words.languages) * WORD
    prompts = measured * len(tasks)
    tokens = prompts * (length + branches)
    layers = 0 if config.steer_layers == "none" else 5 if config.steer_layers == "auto" else len(config.steer_layers)
    steered = min(config.steer_rows, measured) * layers * (1 + config.random_draws)
    tokens += steered * length * sum(task.name != "repetition" for task in tasks)
    if "tuned" in config.lenses:
        tokens += config.translator_tokens * max(1, model.layers - 1)
    scored = prompts * branches * model.layers * model.vocabulary * model.width * len(config.lenses)
    return Plan(
        prompts,
        tokens,
        scored=scored,
        longest=length + WORD,
        at_once=config.max_tokens,
        captured=model.layers * model.width,
    )


def _text(words: WordList, source: str, target: str, shots: int, config: Config) -> str:
    """About what a prompt is: as many lines as it has, of the first words."""
    lines = []
    for i in range(min(shots + 1, len(words.concepts))):
        word, answer = (words.words[g][i][0] if words.words[g][i] else "" for g in (source, target))
        fields = {
            "source": label(source, config),
            "target": label(target, config),
            "word": word,
            "answer": answer,
        }
        line = config.pair_form
        for name, value in fields.items():
            line = line.replace(f"{{{name}}}", value)
        lines.append(line)
    return "\n".join(lines)


def example(model: Facts) -> dict[str, object]:
    """A short run: of the organism its own questions, of any other model as many examples as its context holds.

    Raises InputError where it holds none."""
    few: dict[str, object] = {"draws": 200, "random_draws": 4, "steer_rows": 12}
    if model.name.startswith("organism"):
        return few | ORGANISM | {"limit": 60}
    if model.is_organism:
        return few
    few |= {"limit": 14, "steer_rows": 4, "random_draws": 2, "tasks": ("translation", "repetition")}
    from importlib.resources import files

    words = read_words(Config(limit=14), Path(str(files("probes.latent_language").joinpath("material/words.jsonl"))))
    room = (model.context or 2048) - 24
    for shots in (2, 1, 0):
        texts = [_text(words, "french", target, shots, Config()) for target in words.languages]
        if max(model.lengths(texts)) <= room:
            return few | {"shots": shots}
    raise InputError(
        f"The context of {model.name} ({model.context} tokens) does not hold a question with its answer; give shorter "
        f"words with --data."
    )

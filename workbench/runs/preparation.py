"""A run before its model is loaded: the probe, its config and its data file, checked as far as that goes."""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core import config as configs
from workbench.core import registry
from workbench.core.context import Context
from workbench.core.errors import Cancelled, InputError
from workbench.core.file_hashes import folder_stamps, stamp
from workbench.core.hub_files import fetched, is_address, parse_address
from workbench.core.paths import is_there, user_path
from workbench.core.registry import Probe
from workbench.core.tables import existing, read_table
from workbench.models.model_outline import Facts, facts

ENGINES = ("hf", "nnsight")
SECONDS = 20.0  # that a look at a run's texts may take before its model is loaded
OPTIONS = (
    "data",
    "model",
    "seed",
    "revision",
    "adapter",
    "date",
    "device",
    "dtype",
    "engine",
    "edit",
    "edits",
    "out",
)  # of a run, beside the config of its probe


@dataclass(frozen=True)
class Prepared:
    """A probe with its config and data file, checked as far as that goes without a model."""

    probe: Probe
    config: Any
    data: Path | None
    data_name: str | None  # "package:path" or "model:file" where the file ships with the project or with the model
    address: str | None = None  # on the hub, where the file was fetched from there


def prepare(
    probe: str | Probe, config: Any = None, data: str | Path | None = None, *, model: str | None = None
) -> Prepared:
    """Find the probe, build its config, look at its data file: where none is given, the one that goes with a model of
    that name. Raises InputError, also for a model whose files say that the probe cannot run on it; loads no model."""
    item = registry.get(probe) if isinstance(probe, str) else probe
    where = f"the config of {item.name}"
    if isinstance(config, item.config):  # made by hand, so nothing of it was checked
        config = configs.build(item.config, configs.to_dict(config), where=where, literal=True)
    else:
        _no_options(item, config or {})
        config = configs.build(item.config, config, where=where)
    hub = parse_address(data) if data is not None and is_address(data) else None
    path, name = data_file(item, config, data, model)
    about = facts(model) if model is not None else None
    if about is not None:
        check_suited(item, about)
    if item.validate is not None:
        item.check(config, path, model, about)
    elif path is not None and item.data is not None and item.data.required:
        read_table(path, required=item.data.required, what=item.data.what)
    return Prepared(probe=item, config=config, data=path, data_name=name, address=hub and hub.address)


def with_own_data(ready: Prepared, model: str) -> Prepared:
    """The same, with the data file that goes with the model where none was given."""
    spec = ready.probe.data
    if spec is None or (ready.data is not None and ready.data_name is None):
        return ready
    own, name = spec.default_file(model)
    if own is None or own == ready.data:
        return ready
    ready.probe.check(ready.config, own, model, facts(model))
    return dataclasses.replace(ready, data=own, data_name=name)


def check_unloaded(
    ready: Prepared,
    model: str,
    *,
    seed: int = 0,
    revision: str | None = None,
    adapter: str | Path | None = None,
    date: str | datetime.date | None = None,
    engine: str = "hf",
    edits: Sequence[Any] = (),
    trust_remote_code: bool = False,
    seconds: float = SECONDS,
) -> str | None:
    """Hold a run against its model as it is without its weights: what the probe's `before_loading` finds in tokenizer,
    config, autoencoder and checkpoints. A sentence on what could not be looked at yet, or None.

    No weight is read. It ends after `seconds` at the latest where the probe asks whether to go on; what is wrong with
    the texts beyond is said by the run. Raises InputError for what cannot work."""
    if ready.probe.before_loading is None:
        return None
    from workbench.models.unloaded_model import open_unloaded

    found = open_unloaded(model, revision, adapter=adapter, date=date, trust_remote_code=trust_remote_code)
    if found is None:
        return f"The model {model} is not on this machine yet: its tokenizer is held against the data once it is there."
    ready = with_own_data(ready, model)
    end = time.monotonic() + seconds
    context = Context(
        seed=seed, data=ready.data, edits=tuple(edits), engine=engine, cancelled=lambda: time.monotonic() > end
    )
    try:
        registry.load_function(ready.probe.before_loading)(found, ready.config, context)
    except Cancelled:
        return "The texts are many: those that could not be looked at in time are checked by the run."
    return None


def stamps(ready: Prepared, model: str) -> tuple:
    """Others once a file that :func:`check_unloaded` looks at has changed: of the model, the data, and what the config
    names."""
    about = facts(model)
    named = [getattr(ready.config, option["name"]) for option in configs.describe(type(ready.config)) if option["file"]]
    texts = [text for value in named for text in (value if isinstance(value, tuple) else (value,))]
    paths = [user_path(text) for text in texts if isinstance(text, str) and text and is_there(user_path(text))]
    paths += [path for path in (ready.data, about and about.folder) if path is not None]
    return tuple((str(path), folder_stamps(path) if path.is_dir() else stamp(path)) for path in paths)


def check_suited(item: Probe, about: Facts) -> None:
    """InputError, with the reason, for a model that lacks by its files what the probe needs."""
    reason = about.why_not(item.needs)
    if reason is not None:
        raise InputError(f"{item.name} cannot run on this model: {reason[:1].lower()}{reason[1:]}")


def check_engine(engine: str) -> None:
    """InputError for a name that is no engine."""
    if engine not in ENGINES:
        hosted = (
            " (both run on this machine; hosted models are not reached)" if engine.lower() in ("ndif", "remote") else ""
        )
        raise InputError(f"There is no engine '{engine}'; the engines are {', '.join(ENGINES)}{hosted}.")


def _no_options(item: Probe, values: Mapping[str, Any]) -> None:
    """Refuse an option of a run among the keys of a config, unless the probe has a key of that name."""
    for key in values:
        if key in OPTIONS and key not in configs.types_of(item.config):
            raise InputError(
                f"'{key}' is no key of the config of {item.name} but an option of the run: --{key} on the "
                f"command line, {key} = ... beside the config elsewhere."
            )


def named_in(config: Any, item: Probe) -> str | None:
    """The data file that the config names, where the probe has a key for that and it is not left at its default."""
    key = item.data.option if item.data is not None else None
    value = getattr(config, key) if key is not None else None
    return value if isinstance(value, str) and key in configs.changed(config) else None


def data_file(
    item: Probe, config: Any, data: str | Path | None, model: str | None = None
) -> tuple[Path | None, str | None]:
    """The data file of a run, fetched where its address on the hub was given, and its name where it ships."""
    if data is not None and item.data is not None and is_address(data):
        data = fetched(parse_address(data))
    named = named_in(config, item)
    if named is not None:
        path = existing(named, what=item.data.what).resolve()
        if data is not None and user_path(data).resolve() != path:
            raise InputError(
                f"The {item.data.what} file is given twice, --data {data} and {item.data.option}={named}; keep one."
            )
        return path, None
    if data is not None:
        if item.data is None:
            raise InputError(f"The probe '{item.name}' takes no data file.")
        if item.data.folder and is_there(user_path(data)) and user_path(data).is_dir():
            return user_path(data).resolve(), None
        return existing(data, what=item.data.what).resolve(), None
    if item.data is None:
        return None, None
    default, name = item.data.default_file(model)
    if default is None and not item.data.optional:
        raise InputError(
            f"The probe '{item.name}' needs a {item.data.what} file (--data) with the columns "
            f"{', '.join(item.data.required)}."
        )
    return default, name

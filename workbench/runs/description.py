"""What is written down of a run: the identity that its id is the hash of, its model, its data, its command."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.core import config as configs
from workbench.core.errors import InputError
from workbench.core.files import digest_path
from workbench.core.paths import is_there, usable_path, user_path
from workbench.core.tables import fingerprint_file, read_table
from workbench.models import devices
from workbench.models.load_options import DAY
from workbench.models.prompt_templates import uses_date
from workbench.runs.identity import by_content, model_name, own_name
from workbench.runs.preparation import Prepared, named_in


def identify(
    ready: Prepared, model: Any, *, seed: int, engine: str = "hf", edits: Sequence[Any] = ()
) -> dict[str, Any]:
    """Everything that the tables of a run depend on; its hash is the id of the run. Files count by content and, where
    they are one's own, by name; never by the folder they lie in."""
    values = configs.to_dict(ready.config)
    for field in dataclasses.fields(ready.config):
        if _as_before(field, ready.config):
            del values[field.name]
        elif field.metadata["file"]:
            values[field.name] = by_content(values[field.name], ready.probe)
    material = {
        name: entry.get("fingerprint", entry.get("value"))
        for name, entry in describe_material(ready, model.name).items()
    }
    return {
        "probe": ready.probe.name,
        "version": ready.probe.version,
        "model": model.fingerprint,
        "tokenizer": getattr(model, "tokenizer_fingerprint", None),
        "config": values,
        "data": None if ready.data is None else fingerprint_file(ready.data),
        "seed": seed,
        "engine": engine,
        "dtype": dtype_of(model),
        "edits": describe_edits(edits),
        **({"material": material} if material else {}),
        **({"data_name": name} if (name := _own_data_name(ready)) else {}),
        **({"model_name": name} if (name := model_name(model)) else {}),
        **({"date": day} if (day := _template_day(model)) not in (None, str(DAY)) else {}),
    }


def _as_before(field: dataclasses.Field, config: Any) -> bool:
    """Whether a key that was added later leaves a run what it was without the key."""
    later = field.metadata["later"]
    return later(config) if callable(later) else later and getattr(config, field.name) == field.default


def describe_model(model: Any) -> dict[str, Any]:
    """The ``model`` entry of run.json."""
    return {
        "name": str(model.name),
        "revision": model.revision,
        "fingerprint": model.fingerprint,
        "architecture": model.architecture,
        "layers": model.n_layers,
        "heads": model.n_heads,
        "kv_heads": model.n_kv_heads,
        "width": model.width,
        "dtype": dtype_of(model),
        "device": str(model.device),
        **({} if devices.is_cpu(model.device) else {"device_name": devices.name(model.device)}),
        **({"adapter": _describe_adapter(adapter)} if (adapter := getattr(model, "adapter", None)) else {}),
        **({"date": day} if (day := _template_day(model)) else {}),
    }


def describe_data(ready: Prepared) -> dict[str, Any] | None:
    if ready.data is None:
        return None
    try:
        rows = read_table(ready.data).height
    except InputError:
        rows = None
    where = {"path": str(ready.data)} if ready.data_name is None else {"name": ready.data_name}
    where |= {"address": ready.address} if ready.address is not None else {}
    return {**where, "fingerprint": fingerprint_file(ready.data), "rows": rows}


def command_for(
    ready: Prepared,
    model: Any,
    *,
    seed: int = 0,
    engine: str = "hf",
    dtype: str | None = None,
    device: str | None = None,
    revision: str | None = None,
    adapter: str | Path | None = None,
    date: str | None = None,
    edit: str | Path | None = None,
    out: str | Path | None = None,
) -> str:
    """The command line that does the same, from any folder: files by their absolute paths. ``model``: a Model or a
    name."""
    words = [
        "workbench",
        "run",
        ready.probe.name,
        "--model",
        _model_word(str(model if isinstance(model, (str, Path)) else model.name)),
    ]
    revision = revision or getattr(model, "revision", None)
    words += ["--revision", str(revision)] if revision else []
    adapter = adapter or getattr(getattr(model, "adapter", None), "path", None)
    words += ["--adapter", str(Path(adapter).expanduser().resolve())] if adapter else []
    day = date or getattr(model, "day", DAY)
    words += ["--date", str(day)] if str(day) != str(DAY) else []
    if ready.data is not None and ready.data_name is None and named_in(ready.config, ready.probe) is None:
        words += ["--data", ready.address or str(ready.data)]
    files = {field.name for field in dataclasses.fields(ready.config) if field.metadata["file"]}
    for key, value in configs.changed(ready.config).items():
        words += ["--set", f"{key}={configs.format_value(_absolute(value) if key in files else value)}"]
    words += ["--seed", str(seed)] if seed else []
    words += ["--engine", engine] if engine != "hf" else []
    dtype = dtype if isinstance(model, (str, Path)) else dtype_of(model)
    words += ["--dtype", dtype] if dtype not in (None, "float32") else []
    words += ["--device", device] if device else []
    words += ["--edit", str(usable_path(edit, what="edit file").resolve())] if edit is not None else []
    words += ["--out", str(usable_path(out, what="--out folder").resolve())] if out is not None else []
    return shlex.join(words)


def _own_data_name(ready: Prepared) -> str | None:
    return None if ready.data_name is not None else own_name(ready.data, ready.probe).get("name")


def _template_day(model: Any) -> str | None:
    """The day that the model's chat template prints; None where it prints none."""
    if getattr(model, "tokenizer", None) is None or not uses_date(model):
        return None
    return str(getattr(model, "day", DAY))


def _describe_adapter(adapter: Any) -> dict[str, str]:
    return {"path": str(adapter.path), "fingerprint": adapter.fingerprint}


def describe_material(ready: Prepared, model: str) -> dict[str, dict[str, Any]]:
    """What the probe says it reads besides its data: {file, fingerprint} of a path, {value} of anything else."""
    found = dict(ready.probe.material(ready.config, model)) if ready.probe.material is not None else {}
    return {
        name: {"file": value.name, "fingerprint": digest_path(value)} if isinstance(value, Path) else {"value": value}
        for name, value in found.items()
    }


def dtype_of(model: Any) -> str:
    return str(model.dtype).removeprefix("torch.")


def _model_word(name: str) -> str:
    """The name of a model for a command line: a local folder by its absolute path."""
    from workbench import organisms

    path = usable_path(name, what="model")
    return str(path.resolve()) if path.is_dir() and name not in organisms.names() else name


def _absolute(value: Any) -> Any:
    """A path that exists as an absolute one; anything else as it is (a single word that is a folder may be a name as
    well)."""
    if isinstance(value, tuple):
        return tuple(_absolute(item) for item in value)
    if isinstance(value, str) and value:
        path = user_path(value)
        if not is_there(path):
            return value
        if path.is_file() or (path.is_dir() and value.startswith((".", "~", "/"))):
            return str(path.resolve())
    return value


def describe_edits(edits: Sequence[Any]) -> list[dict[str, Any]]:
    if not edits:
        return []
    from workbench.engine.edits import describe

    return describe(edits)

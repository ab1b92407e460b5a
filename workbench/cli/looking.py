"""The commands that look: probes, models, runs, show, compare, figures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.app import Json, app, path_of
from workbench.cli.show import print_columns, print_json, say, say_data, summary_lines
from workbench.core.wording import cut, origin, significant


@app.command()
def probes(
    name: Annotated[str | None, typer.Argument(metavar="[PROBE]", help="Only this one, with its config keys.")] = None,
    json: Json = False,
) -> None:
    """List the probes, or the config keys of one.

    With a name, or with --json, also every config key, table and data column.
    """
    from workbench.core import config, registry

    names = registry.names() if name is None else [registry.get(name).name]
    if json:
        print_json([_describe(item) for item in names])
        return
    if name is None:
        rows = [[item, problem or registry.get(item).summary] for item in names for problem in [registry.problem(item)]]
        print_columns(["probe", "what it does"], rows)
        print("Config keys, tables and data of one: workbench probes PROBE")
        return
    item = registry.get(name)
    say(item.summary)
    if item.data is not None:
        default = f"; default {item.data.default}" if item.data.default else ""
        say(f"data: {item.data.what} file with the columns {', '.join(item.data.required) or 'any'}{default}")
    for table, columns in item.tables.items():
        say(f"table {table}: {', '.join(columns)}")
    for pattern, what in item.leaves.items():
        say(f"file {pattern}: {what}")
    for what in item.imports:
        say(f"imports {what}")
    print()
    rows = []
    for key in config.describe(item.config):
        default = "(required)" if key["required"] else config.format_value(key["default"])
        limits = f"; one of {', '.join(map(str, key['choices']))}" if key["choices"] else ""
        rows.append([key["name"], key["type"], default, key["help"].rstrip(".") + limits])
    print_columns(["key", "type", "default", "what it does"], rows)


def _describe(name: str) -> dict:
    from workbench.core import config, registry
    from workbench.models.model_outline import outline

    problem = registry.problem(name)
    if problem is not None:
        return {"name": name, "problem": problem}
    item = registry.get(name)
    data = item.data
    return {
        "name": item.name,
        "title": item.title,
        "summary": item.summary,
        "module": item.run.__module__,
        "version": item.version,
        "config": config.describe(item.config),
        "tables": {table: list(columns) for table, columns in item.tables.items()},
        "data": None
        if data is None
        else {
            "what": data.what,
            "required": list(data.required),
            "columns": list(data.columns),
            "default": data.default,
            "optional": data.optional,
        },
        "leaves": dict(item.leaves),
        "imports": list(item.imports),
        "demo": dict(item.example(outline("organism"))) if item.example is not None else {},
        "bibtex": item.bibtex,
    }


@app.command()
def models(json: Json = False) -> None:
    """List the models that are here.

    Those that ship with the project, and those in the local Hugging Face cache.
    """
    from workbench import organisms

    rows = [{"name": name, "from": "the project", "about": about} for name, about in organisms.names().items()]
    rows += _cached_models()
    if json:
        print_json(rows)
    else:
        print_columns(["model", "from", "about"], [list(row.values()) for row in rows])
        print("A folder in Hugging Face format or a hub id (owner/name) works too.")


def _cached_models() -> list[dict]:
    """Models of the local Hugging Face cache that have safetensors weights."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir().repos
    except (CacheNotFound, OSError):
        return []
    return [
        {"name": repo.repo_id, "from": f"hub cache ({revision.commit_hash[:8]})", "about": str(revision.snapshot_path)}
        for repo in sorted(repos, key=lambda repo: repo.repo_id)
        if repo.repo_type == "model"
        for revision in repo.revisions
        if any(file.file_name.endswith(".safetensors") for file in revision.files)
    ]


@app.command()
def runs(
    probe: Annotated[str | None, typer.Option(help="Only runs of this probe.")] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            parser=path_of("runs folder"),
            metavar="PATH",
            help="Another folder of runs.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List the runs, the latest first."""
    from workbench.runs.folder import UnreadableRun, list_runs, runs_root, unreadable_sentence

    unreadable: list[UnreadableRun] = []
    found = [run for run in list_runs(root=root, unreadable=unreadable) if probe in (None, run.probe)]
    if json:
        print_json([{**run.info, "status": run.status, "folder": str(run.folder)} for run in found])
    elif not found:
        say(f"No runs in {root or runs_root()}.")
    else:
        rows = [
            [
                run.folder.name,
                run.status,
                run.of("model", "name"),
                cut(run.of("started", default="-"), 19),
                significant(run.of("seconds", "total")),
            ]
            for run in found
        ]
        print_columns(["run", "status", "model", "started (UTC)", "seconds"], rows)
    if unreadable:
        say(unreadable_sentence(unreadable), error=True)


@app.command()
def show(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Id of a run, a beginning of it, or a folder.")],
    table: Annotated[str | None, typer.Option(help="Print this table as CSV.")] = None,
    json: Json = False,
) -> None:
    """Show one run, or one of its tables as CSV."""
    from workbench.core.errors import InputError
    from workbench.runs.claim import in_words
    from workbench.runs.folder import open_run

    found = open_run(run)
    if table is not None:
        frame = found.table(table)
        if json:
            print_json(frame.to_dicts())
        else:
            say_data(_csv(frame))
        return
    damage = found.damage()
    tables = {name: found.table(name) for name in found.tables if f"tables/{name}.parquet" not in damage}
    summary = found.summary if "summary.json" not in damage else {}
    status = "damaged" if damage else found.status
    if json:
        shapes = {name: {"rows": frame.height, "columns": frame.columns} for name, frame in tables.items()}
        about = {"status": status, "folder": str(found.folder), "summary": summary, "tables": shapes}
        print_json({**found.info, **about, **({"damage": damage} if damage else {})})
    else:
        for line in _lines_of(found, status, summary, tables):
            say(line)
    if damage:
        raise InputError(
            f"The run {found.id} is damaged: {in_words(damage)}; its command, given again, computes it again."
        )


def _lines_of(run, status: str, summary: dict, tables: dict) -> Iterator[str]:
    """A run in lines; what its run.json does not say is a hyphen."""
    from workbench.core.config import format_value

    yield f"{run.id}: {status}"
    if imported := origin(run.info):
        yield f"  imported from: {imported}"
    model = ", ".join(str(run.of("model", key, default="-")) for key in ("architecture", "dtype", "device"))
    yield f"  model: {run.of('model', 'name', default='-')} ({model})"
    if run.of("data"):
        there = run.of("data", "rows_in_file")
        where = run.of("data", "address") or run.of("data", "path") or run.of("data", "name", default="-")
        yield f"  data: {where} ({run.of('data', 'rows', default='-')}{f' of {there}' if there else ''} rows)"
    yield from (f"  read as: {line}" for line in run.of("data", "read_as", default=[]))
    config = [f"{key}={format_value(value)}" for key, value in run.of("config", default={}).items()]
    yield f"  config: {', '.join(config)}"
    yield (
        f"  seed: {run.of('seed', default='-')}   seconds: {significant(run.of('seconds', 'total'))}   "
        f"started: {cut(run.of('started', default='-'), 19)}"
    )
    yield from (f"  {line}" for line in summary_lines(summary))
    for name, frame in tables.items():
        yield f"  table {name}: {frame.height} rows, {', '.join(frame.columns)}"
    yield from (f"  warning: {warning}" for warning in run.of("warnings", default=[]))
    if run.of("error"):
        yield f"  error: {run.of('error', 'message')}"
    yield f"  command: {run.of('command', default='-')}"
    yield f"  folder: {run.folder}"


@app.command()
def verify(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]...", help="Ids of runs, beginnings of them, or folders; none: all runs."),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            parser=path_of("runs folder"),
            metavar="PATH",
            help="Another folder of runs.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Check every file of runs against its checksum.

    Exit code 3 when a file is missing or not what the run left.
    """
    from dataclasses import asdict

    from workbench.core.errors import RunFailed
    from workbench.runs import verify as verifying

    found = [verifying.verify(run, root=root) for run in runs] if runs else verifying.verify_all(root=root)
    if json:
        print_json([asdict(verdict) for verdict in found])
    elif not found:
        say("No runs.")
    else:
        print_columns(["run", "status", "files"], [[item.run, item.status, item.files] for item in found])
    damaged = [f"{item.run}, {name}: {how}" for item in found for name, how in item.damage.items()]
    if damaged:
        for line in damaged[1:]:
            say(line, error=True)
        raise RunFailed(
            f"{len(damaged)} {'file is' if len(damaged) == 1 else 'files are'} damaged, first {damaged[0]}; the "
            f"command of the run (`workbench show RUN`), given again, computes it again."
        )


def _csv(frame) -> str:
    """Lists as JSON text, the rest as polars writes it."""
    import json

    import polars as pl

    nested = [name for name, dtype in frame.schema.items() if dtype.is_nested()]
    texts = [
        pl.Series(
            name, [None if value is None else json.dumps(value) for value in frame[name].to_list()], dtype=pl.String
        )
        for name in nested
    ]
    return frame.with_columns(texts).write_csv()


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Id of a run, a beginning of it, or a folder.")],
    table: Annotated[str | None, typer.Option(help="Print the joined rows of this table as CSV (two runs).")] = None,
    json: Json = False,
) -> None:
    """Compare two runs of the same probe, or several.

    Tables of the same name are joined on their keys. Two runs: differences, and correlations with intervals. Several:
    means, and the rank correlation of every pair.
    """
    from workbench.core.errors import InputError
    from workbench.runs import compare as comparing
    from workbench.runs import compare_several as several
    from workbench.runs.folder import open_run

    opened = [open_run(run) for run in runs]
    if len(opened) != 2:
        if table is not None:
            raise InputError(f"--table joins the rows of two runs; {len(opened)} are named.")
        found = several.compare_several(opened)
        if json:
            print_json(found)
        else:
            for line in several.lines_of_several(found):
                say(line)
        return
    one, two = opened
    if table is not None:
        frame = comparing.joined(one, two, table)
        if json:
            print_json(frame.to_dicts())
        else:
            say_data(_csv(frame))
        return
    found = comparing.compare(one, two)
    if json:
        print_json(found)
    else:
        for line in comparing.lines(found):
            say(line)


@app.command()
def figures(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN", help="Id of a run, a beginning of it, or a folder; several for one figure of all."
        ),
    ],
    format: Annotated[str, typer.Option(help="pdf, svg, png, html, csv; several as pdf,png.")] = "pdf",
    preset: Annotated[str, typer.Option(help="single (column), double (column) or slide.")] = "single",
    only: Annotated[str | None, typer.Option(help="Only this figure.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=path_of("--out folder"), metavar="PATH", help="Folder; default: figures/ in the (first) run."
        ),
    ] = None,
    colour: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Another run, of any probe, whose scores of heads colour the heads."),
    ] = None,
    column: Annotated[str | None, typer.Option(help="The score of --colour that does; default: its main one.")] = None,
    json: Json = False,
) -> None:
    """Draw the figures of a run, with captions and BibTeX.

    Several runs of one probe are drawn in one figure, where the probe has one. --colour draws those figures of one run
    that show heads in the colours of another.
    """
    from workbench.core.disk_errors import refusals_as_sentences
    from workbench.core.errors import InputError
    from workbench.figures.export import export_run
    from workbench.figures.several_runs import export_of_several
    from workbench.runs.claim import in_words
    from workbench.runs.folder import open_run

    found = [open_run(run) for run in runs]
    formats = [item.strip() for item in format.split(",") if item.strip()]
    if colour is not None and len(found) > 1:
        raise InputError("--colour colours the figures of one run; name one run.")
    if column is not None and colour is None:
        raise InputError("--column is a score of the run that --colour names; give both.")
    by = None if colour is None else (open_run(colour), column)
    with refusals_as_sentences(out or found[0].folder / "figures"):
        if len(found) == 1:
            written = export_run(found[0], formats=formats, preset=preset, out=out, only=only, colour=by)
        elif only is not None:
            raise InputError("--only chooses among the figures of one run; several runs have one figure.")
        else:
            written = export_of_several(found, formats=formats, preset=preset, out=out)
    if json:
        print_json([str(path) for path in written])
    else:
        for path in written:
            say(path)
    for one in found:  # a figure that needs a damaged file is not among those that were drawn
        damage = {name: how for name, how in one.damage().items() if name != "progress.jsonl"}
        if damage:
            raise InputError(
                f"The run {one.id} is damaged, and what needs the file was not drawn: {in_words(damage)}; its command, "
                f"given again, computes it again."
            )

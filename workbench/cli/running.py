"""The commands that compute: run, sweep, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.app import Json, Quiet, app, path_of
from workbench.cli.show import print_columns, print_json, progress, say, summary_lines
from workbench.core.errors import InputError, RunFailed
from workbench.models.load_options import AUTOMATIC


@app.command()
def run(
    probe: Annotated[str, typer.Argument(metavar="PROBE", help="Name of the probe; `workbench probes` lists them.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="Organism, local folder in Hugging Face format, or hub id.")
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            parser=path_of("data file"),
            metavar="PATH",
            help="Data file of the probe, or hf://datasets/OWNER/NAME/PATH; each has one that ships with the project.",
        ),
    ] = None,
    set: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A config key; lists as 1,2,3 or as JSON, where commas and line breaks matter. Repeatable.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            parser=path_of("config file"), metavar="PATH", help="TOML file of config keys; --set goes before it."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    revision: Annotated[str | None, typer.Option(help="Revision of the model on the hub.")] = None,
    adapter: Annotated[
        str | None, typer.Option(help="Folder of an adapter (LoRA and its kin, of peft) to merge into the model.")
    ] = None,
    date: Annotated[
        str | None,
        typer.Option(
            metavar="YYYY-MM-DD",
            help="The day that a chat template which prints today's date is told; 2024-07-26 unless given.",
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, auto; a GPU where there is one.")] = None,
    dtype: Annotated[
        str,
        typer.Option(
            help="float32, bfloat16, float16 or auto (as stored); automatic: float32 on a CPU, else as stored."
        ),
    ] = AUTOMATIC,
    engine: Annotated[str, typer.Option(help="hf or nnsight, both on this machine.")] = "hf",
    edit: Annotated[
        Path | None,
        typer.Option(
            "--edit",
            "--edits",
            parser=path_of("edit file"),
            metavar="PATH",
            help="File of heads to switch off or run twice, of modules to drop, or of weights to keep, during the run.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=path_of("--out folder"),
            metavar="PATH",
            help="Folder of the run; default: by id below the runs folder.",
        ),
    ] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Run the code that comes with the model.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Compute again even if the run is complete.")] = False,
    estimate: Annotated[bool, typer.Option("--estimate", help="Say what the run would take, and stop.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run a probe on a model. The same command again resumes it, or shows it when it is complete."""
    import contextlib
    import sys

    from workbench.core.config import parse_assignments, read_toml
    from workbench.models.before_loading import check_request
    from workbench.runs import execution

    values = {**(read_toml(config) if config else {}), **parse_assignments(set or ())}
    ready = execution.prepare(probe, values, data, model=model)  # bad input is found before torch is imported
    check_request(model, revision=revision, adapter=adapter, date=date, dtype=dtype)
    if estimate:
        from workbench.cli.estimate import print_estimate

        return print_estimate(ready, model, dtype=dtype, device=device, json=json)
    changes: tuple = ()
    if edit is not None:
        from workbench.core.tables import existing

        path = existing(edit, what="edits")
        from workbench.engine.edit_files import parse_edit
        from workbench.runs.folder import read_file

        changes = (parse_edit(read_file(path), path),)
    command = execution.command_for(
        ready,
        model,
        seed=seed,
        engine=engine,
        dtype=dtype,
        device=device,
        revision=revision,
        adapter=adapter,
        date=date,
        edit=edit,
        out=out,
    )
    # A library that prints must not get between a script and its JSON.
    with progress(quiet=quiet) as report, contextlib.redirect_stdout(sys.stderr):
        done = execution.execute(
            ready,
            model,
            seed=seed,
            out=out,
            revision=revision,
            adapter=adapter,
            date=date,
            dtype=dtype,
            device=device,
            engine=engine,
            edits=changes,
            trust_remote_code=trust_remote_code,
            progress=report,
            command=command,
            fresh=fresh,
        )
    if json:
        print_json({**done.info, "folder": str(done.folder), "summary": done.summary})
    else:
        print_run(done)


def print_run(done) -> None:
    """What a person wants to see when a run is complete."""
    say(f"{done.probe} on {done.of('model', 'name')}: {done.status}, {done.of('seconds', 'total', default=0):.1f} s")
    for line in summary_lines(done.summary):
        say(f"  {line}")
    for warning in done.of("warnings", default=[]):
        say(f"  warning: {warning}")
    say(f"  folder: {done.folder}")
    say(f"  figures: {_program()} figures {done.folder if done.folder.name != done.id else done.id}")


@app.command()
def sweep(
    file: Annotated[
        Path,
        typer.Argument(
            parser=path_of("sweep file"), metavar="F.toml", help="Models, seeds and probes with their configs."
        ),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs and stop.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run models x probes x configs x seeds from one file.

    One after the other; what is complete is not computed again, and a run that fails does not stop the others.
    """
    from workbench.runs import sweep as sweeps

    jobs = sweeps.read(file)
    if dry_run:
        problems = sweeps.check(jobs)
        rows = [
            {"probe": job.probe, "model": job.model, "seed": job.seed, "config": job.config}
            | ({"problem": problem} if problem else {})
            for job, problem in zip(jobs, problems)
        ]
        if json:
            print_json(rows)
        else:
            columns = ["probe", "model", "seed", "config"]
            print_columns(columns, [[str(row[column]) for column in columns] for row in rows])
        found = list(dict.fromkeys(problem for problem in problems if problem))
        if found:
            count = sum(problem is not None for problem in problems)
            raise InputError(f"{count} of {len(jobs)} runs cannot be made; the first: {found[0]}")
        return
    with progress(quiet=quiet) as report:
        outcomes = sweeps.run(jobs, progress=report)
    if json:
        print_json(outcomes)
    else:
        columns = ["status", "probe", "model", "seed", "run", "error"]
        print_columns(columns, [[outcome.get(column) for column in columns] for outcome in outcomes])
    failed = [outcome for outcome in outcomes if outcome["status"] == "failed"]
    if failed:
        raise RunFailed(f"{len(failed)} of {len(outcomes)} runs failed; the first: {failed[0]['error']}")


@app.command()
def demo(
    model: Annotated[str, typer.Option(help="Model to run on.")] = "organism",
    out: Annotated[
        Path | None,
        typer.Option(
            parser=path_of("--out folder"), metavar="PATH", help="Folder for the figures; default: the run's own."
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Run the main job on what ships with the project.

    Makes a short run of the first probe, draws its figures, and says where everything is.
    """
    from workbench.core.disk_errors import refusals_as_sentences
    from workbench.runs import demo as demos
    from workbench.runs.folder import runs_root

    with progress(quiet=quiet) as report, refusals_as_sentences(out or runs_root()):
        done, written = demos.run(model=model, out=out, progress=report)
    if not written:
        raise InputError("The demo drew no figures.")
    print_run(done)
    drawn = sorted({path.suffix[1:] for path in written} - {"txt", "bib"})
    names = dict.fromkeys(path.name.partition(".")[0] for path in written)
    say(f"  figures written ({', '.join(drawn)}, each with its caption and BibTeX): {', '.join(names)}")
    say(f"  in {written[0].parent}")
    print(f"Open the app:  make app   (or: {_program()} app)")


def _program() -> str:
    """How this command was called, so that it can be called again."""
    import sys

    called = Path(sys.argv[0])
    return str(called) if called.name == "workbench" and called.is_file() else "workbench"

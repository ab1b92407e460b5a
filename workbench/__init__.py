"""Probes for transformer language models; see the README. These names are the public interface: what they do, return
and raise stays; every other module of the package may change.

The short way from Python::

    from workbench import load, probe, figure
    model = load("organism")
    run = probe(NAME, key=value, data=FILE).run(model)  # `workbench probes` lists names and keys
    figure(run)

`probe` takes the keys of the probe's config, and the data file and the seed if there are any; `run` takes the model and
the options of the run (device, dtype, revision, edits, out; data and seed too).

Models and runs: `load`, `wrap`, `probe`, `probes`, `figure`, `open_run`, `compare`, `read_table`, `check_probe`.
One prompt, looked at from all sides: `explore`. Many texts, as points on a map of a layer: `activation_map`.
Passes over a model: `capture`, `logits`, `score`, `greedy`, `sample`, `observe`, at a `Site`, as a `Pass` says,
sampled by a `Rule`, with the edits `HeadAblation`, `HeadScale`, `DualRun`, `ComponentScale`, `Patch`, `ProjectOut`,
`Steer`, `KnockOut` and `DropModules`; `Store` keeps captures on disk. A probe of one's own is declared with what
`workbench.core` offers.

Everything here is loaded when it is first asked for: ``import workbench`` imports neither torch nor polars.
"""

from workbench.core.lazy import lazy

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "load": "workbench.models.loading",
        "wrap": "workbench.models.loading",
        "Site": "workbench.models.sites",
        "observe": "workbench.models.attention",
        "capture": "workbench.engine.capture",
        "logits": "workbench.engine.capture",
        "score": "workbench.engine.scoring",
        "greedy": "workbench.engine.generate",
        "sample": "workbench.engine.generate",
        "Rule": "workbench.engine.sampling",
        "Pass": "workbench.engine.passes",
        "HeadAblation": "workbench.engine.edits",
        "HeadScale": "workbench.engine.edits",
        "DualRun": "workbench.engine.dual_run",
        "ComponentScale": "workbench.engine.component_scale",
        "explore": "workbench.explorer",
        "activation_map": "workbench.explorer",
        "Patch": "workbench.engine.edits",
        "ProjectOut": "workbench.engine.edits",
        "KnockOut": "workbench.engine.edits",
        "Steer": "workbench.engine.steering",
        "DropModules": "workbench.engine.dropping",
        "Store": "workbench.store.activation_store",
        "probe": "workbench.runs.execution:bind",
        "probes": "workbench.core.registry:names",
        "figure": "workbench.runs.execution",
        "open_run": "workbench.runs.folder",
        "compare": "workbench.runs.compare",
        "read_table": "workbench.core.tables",
        "check_probe": "workbench.runs.checks",
    },
)

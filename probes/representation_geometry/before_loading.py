"""What is known to be wrong before the weights are read: texts, tasks and checkpoints that do not go with the model."""

from __future__ import annotations

from probes.representation_geometry.config import Config
from probes.representation_geometry.measured_texts import measured_texts
from probes.representation_geometry.trajectory import check_task_steps
from workbench.core.context import Context
from workbench.engine.evaluation import encode_choices
from workbench.models import checkpoints
from workbench.models.unloaded_model import UnloadedModel


def check(model: UnloadedModel, config: Config, context: Context) -> None:
    """Raise InputError for texts too few or too long, and for checkpoints that are not there or not of this run."""
    measured_texts(model, config, context)
    if config.choices:
        encode_choices(model, config.choices)
    found = checkpoints.places(model, config.checkpoints)
    if found and config.task:
        check_task_steps(config.task, [step for _, step, _ in found], context)
    checkpoints.check_files(found, model, context)

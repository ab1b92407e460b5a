"""The command line. Nothing heavy is imported until a command needs it: `workbench --help` answers at once."""

from workbench.cli.app import app
from workbench.cli.main import main

__all__ = ["app", "main"]

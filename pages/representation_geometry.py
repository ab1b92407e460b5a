"""The screen of the probe representation-geometry."""

from pages.parts import frame
from pages.parts.probe_screen import screen

frame.through_app()
screen("representation-geometry")

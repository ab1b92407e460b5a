"""The screen of the probe branching-factor."""

from pages.parts import frame
from pages.parts.probe_screen import screen

frame.through_app()
screen("branching-factor")

"""The screen of the probe retrieval-heads."""

from pages.parts import frame
from pages.parts.probe_screen import screen

frame.through_app()
screen("retrieval-heads")

"""The screen of the probe knowledge-conflict."""

from pages.parts import frame
from pages.parts.probe_screen import screen

frame.through_app()
screen("knowledge-conflict")

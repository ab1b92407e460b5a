"""The screen of the probe representation-geometry."""

from pages.widgets import navigation
from pages.widgets.probe_screen import screen

navigation.through_app()
screen("representation-geometry")

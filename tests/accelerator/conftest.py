"""The virtual accelerator, there for one test."""

import pytest


@pytest.fixture
def virtual():
    """One virtual device of 16 GiB is in this machine; gives its module."""
    from tests import virtual_accelerator as va

    with va.present() as module:
        yield module

"""What the tests of the explorer share: small models of several architectures, opened once for a file."""

import pytest

from tests.support.architectures import build
from workbench.explorer.opened_model import Opened
from workbench.models.loading import wrap


@pytest.fixture(scope="module")
def opened():
    made = {}

    def of(name):
        if name not in made:
            made[name] = Opened(wrap(build(name), None, name=name))
        return made[name]

    return of

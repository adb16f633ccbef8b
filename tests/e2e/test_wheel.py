"""The built wheel is whole: it runs where the source tree is not."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

import agent_manager

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def test_the_installed_command_is_the_wheels_own_and_has_its_catalog(wheel_cli: Path, tmp_path: Path) -> None:
    python = wheel_cli.with_name("python")
    where = (
        "import agent_manager, agent_manager.catalog.load as load; "
        "print(agent_manager.__file__, load.packaged_catalog())"
    )

    version = subprocess.run(
        [wheel_cli, "--version"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    places = subprocess.run(
        [python, "-P", "-c", where], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    assert agent_manager.__version__ in version.stdout
    package, catalog = places.stdout.split()
    assert package.startswith(str(wheel_cli.parents[1]))
    assert catalog.startswith(str(wheel_cli.parents[1]))

"""What is installed: every folder of the code goes into the wheel."""

import configparser
from pathlib import Path

from setuptools import find_packages

ROOT = Path(__file__).parents[1]


def test_every_folder_with_python_files_is_in_the_wheel() -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    include = settings["options.packages.find"]["include"].split()
    packaged = set(find_packages(str(ROOT), include=include))
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for package in ("funnel", "indexes")
        for path in (ROOT / package).rglob("*.py")
    }
    assert {"funnel", "funnel.planning", "indexes"} <= folders
    assert folders == packaged

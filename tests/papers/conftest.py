"""A paper at the size of `smoke`, for the test file that is called by its slug: in `test_dgd.py` it is DGD."""
import importlib
import inspect
from types import ModuleType

import pytest

from kdnotes.config import Settings
from kdnotes.experiment import Experiment


@pytest.fixture(scope="module")
def paper(request: pytest.FixtureRequest) -> ModuleType:
    """The module of the paper."""
    return importlib.import_module(f"kdnotes.papers.{request.path.stem.removeprefix('test_')}")


@pytest.fixture(scope="module")
def config(paper: ModuleType) -> Settings:
    """Its settings, of one seed."""
    return paper.Config.profile("smoke", seeds="0")


@pytest.fixture(scope="module")
def experiment(paper: ModuleType, config: Settings, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Where its stages are made, once for all tests of the file."""
    return Experiment.alone(paper.__name__.rpartition(".")[2], config, tmp_path_factory.mktemp("stages"))


@pytest.fixture(scope="module")
def cast(paper: ModuleType, config: Settings) -> object:
    """Its stages by name, of the seed where they are of one."""
    return paper.Cast(config, *(config.seeds if "seed" in inspect.signature(paper.Cast).parameters else ()))

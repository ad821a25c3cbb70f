"""What several test files need: small paper notebooks, and worker processes that start quickly."""
import os
from collections.abc import Callable
from pathlib import Path

import pytest

CONTRACT = 'profile = "demo"\ndataset = ""\nseeds = ""\ndevice = "auto"\nprecision = "auto"\nout = ""\noverrides = {}'


@pytest.fixture(scope="session")
def write_paper() -> Callable[..., Path]:
    """`write_paper(folder, slug, *cells, parameters=..., tags=1)` writes a paper notebook with `tags` parameters cells and returns its path."""
    import nbformat
    v4 = nbformat.v4

    def write(folder: Path, slug: str, *cells: str, parameters: str = CONTRACT, tags: int = 1) -> Path:
        tagged = [v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}) for _ in range(tags)]
        book = v4.new_notebook(cells=[v4.new_markdown_cell(f"# Paper {slug}"), *tagged, *map(v4.new_code_cell, cells)])
        folder.mkdir(parents=True, exist_ok=True)
        nbformat.write(book, folder / f"{slug}.ipynb")
        return folder / f"{slug}.ipynb"
    return write


@pytest.fixture
def light_workers(tmp_path_factory, monkeypatch) -> None:
    """Spare each worker process 1.7 s: jsonschema would load a grammar of IRIs, which no notebook asks for."""
    folder = tmp_path_factory.mktemp("light")
    (folder / "rfc3987_syntax.py").write_text("raise ImportError('too slow for tests')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH")))))

"""JupyterLab on this checkout: `make lab`, or `jupyter lab --config jupyter_config.py` at its root.

It opens nbs/index.ipynb, reaches results/ and runs/, and saves the notebooks of nbs/ without outputs (kdnotes.lab).
"""
from pathlib import Path

from kdnotes.lab import save_hook

c = get_config()  # noqa: F821  Jupyter gives it to this file
c.ServerApp.root_dir = str(Path(__file__).parent)
c.LabApp.default_url = "/lab/tree/nbs/index.ipynb"
c.FileContentsManager.pre_save_hook = save_hook

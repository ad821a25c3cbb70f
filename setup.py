"""Build script: version, requirements and metadata come from settings.ini, and from nowhere else.

A wheel holds the notebooks too, below `kdnotes/nbs`: what `kdnotes run` runs, and what that links to, needs no clone.
"""
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read(Path(__file__).with_name("settings.ini"), encoding="utf-8")
cfg = parser["DEFAULT"]


class BuildWithNotebooks(build_py):
    """Modules, package data and, but for an editable installation, the notebooks."""

    def run(self):
        super().run()
        if not self.editable_mode:
            for name, path in self.notebooks().items():
                self.mkpath(str(Path(path).parent))
                shutil.copyfile(name, path)

    def notebooks(self):
        """Each notebook of the checkout, and where it is built."""
        found = [path for path in sorted(Path("nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in path.parts]
        return {str(path): str(Path(self.build_lib, "kdnotes", path)) for path in found}

    def get_outputs(self, include_bytecode=1):
        return [*super().get_outputs(include_bytecode), *([] if self.editable_mode else self.notebooks().values())]


EXTRAS = ("dev", "cluster", "parquet", "faces", "video")

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    license="Apache-2.0",
    keywords=cfg["keywords"],
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=["kdnotes", "kdnotes.*"]),
    package_data={"kdnotes": ["py.typed"], "kdnotes.reported": ["*.csv"], "kdnotes.models": ["kept/*.safetensors"]},
    cmdclass={"build_py": BuildWithNotebooks},
    install_requires=cfg["requirements"].split(),
    extras_require={extra: cfg[f"{extra}_requirements"].split() for extra in EXTRAS},
    entry_points={
        "console_scripts": [cfg["console_scripts"]],
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"],
    },
    zip_safe=False,
)

"""Peak memory of one step, measured in a process of its own, so that nothing that ran before hides it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

needs_linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(),
                                 reason="reads the peak of resident memory as Linux tells it")


def resident(field: str) -> float:
    """MiB of resident memory of this process, now ("VmRSS") or at its peak ("VmHWM")."""
    return next(int(line.split()[1]) / 1024 for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith(field))


def peak_of(small: Callable[[], object], step: Callable[[], object]) -> float:
    """Peak of resident memory during `step`, in MiB above what the process held before;
    `small` is run first and loads what any step needs.
    """
    torch.set_num_threads(2)
    small()
    Path("/proc/self/clear_refs").write_text("5")     # the peak starts from here
    before = resident("VmRSS")
    step()
    return resident("VmHWM") - before


def in_a_process_of_its_own(file: str, function: str, *arguments: str) -> float:
    """What `function(*arguments)` of the benchmark `file` returns in a new process."""
    program = (f"import sys; sys.path.insert(0, {str(Path(file).parent)!r}); import {Path(file).stem} as bench; "
               f"print(bench.{function}(*{arguments!r}))")
    return float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                                check=True).stdout.split()[-1])

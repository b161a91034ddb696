"""``python -m gradflow info``: what gradflow finds on this machine, and why it uses what it uses."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradflow._version import __version__
from gradflow.backend import backends, choice_source, get_backend, usable_cpus
from gradflow.config import get_default_dtype
from gradflow.errors import GradflowError


def collect() -> dict[str, Any]:
    """Gather what ``info`` prints; a choice of backend that fails becomes the entry ``error``."""
    found: dict[str, Any] = {
        "gradflow": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "usable_cpus": usable_cpus(),
        "default_dtype": get_default_dtype().name,
        "backend": None,
        "error": None,
    }
    try:
        chosen = get_backend()
    except GradflowError as error:
        found["error"] = str(error)
    else:
        found["backend"] = {
            "name": chosen.name,
            "device": chosen.device,
            "chosen_by": choice_source(),
            "threads": chosen.num_threads(),
        }
    found["backends"] = [info._asdict() | {"text": str(info)} for info in backends()]
    return found


def describe(found: dict[str, Any]) -> str:
    """Write the gathered facts for a reader."""
    chosen = found["backend"]
    lines = [
        f"gradflow {found['gradflow']}, Python {found['python']}, NumPy {found['numpy']}, {found['platform']}",
        f"default dtype: {found['default_dtype']}",
        f"usable CPUs: {found['usable_cpus']}",
    ]
    if chosen is not None:
        lines.append(f"backend: {chosen['name']} on {chosen['device']}, chosen by: {chosen['chosen_by']}")
        lines.append(f"threads: {chosen['threads']}")
    else:
        lines.append(f"backend: none. {found['error']}")
    lines.append("backends:")
    lines.extend(f"  {info['text']}" for info in found["backends"])
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if all is well, 1 if no backend can be chosen, 2 for wrong use."""
    parser = argparse.ArgumentParser(prog="python -m gradflow", description="gradflow's command line")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    info = commands.add_parser("info", help="versions, backends and settings found on this machine")
    info.add_argument("--json", action="store_true", help="print the same as JSON")
    options = parser.parse_args(arguments)
    found = collect()
    print(json.dumps(found, indent=2) if options.json else describe(found))
    return int(found["error"] is not None)


if __name__ == "__main__":
    sys.exit(main())

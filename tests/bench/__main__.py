"""`make bench`: branchd beside supervisord, circus and pm2 in one run, placements over RabbitMQ, and the floors.

Writes results.json and results.md beside this file and prints the latter. Takes about half an hour on a quiet
machine; root and a kernel with CONFIG_PROC_EVENTS are needed for all but the mesh, and RabbitMQ for that. Only
processes that it started are ended, and nothing listens but on unix sockets in a temporary folder and on the loopback
interface.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path

from tests.bench import mesh, observe
from tests.bench.measures import MEASURES, Figures, Measure, floors
from tests.bench.report import markdown
from tests.bench.supervisors import SUPERVISORS, Loop, Supervisor

HERE = Path(__file__).parent

CHOICES = (*MEASURES, "floors", "mesh")


def main() -> int:
    """The exit status: 1 when a measure failed, whose figures are then missing."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=CHOICES, default=CHOICES)
    names = [kind.name for kind in SUPERVISORS]
    parser.add_argument("--supervisors", nargs="+", choices=names, default=names)
    parser.add_argument("--out", type=Path, default=HERE, help="folder for results.json and results.md")
    arguments = parser.parse_args()
    observe.become_subreaper()

    failed = False
    figures: dict[str, Figures] = {}
    noise: dict[str, float] = {}
    stores = ""
    with tempfile.TemporaryDirectory(prefix="branchd-bench-") as folder:
        supervisors = [kind(Path(folder)) for kind in SUPERVISORS if kind.name in arguments.supervisors]
        runs: list[tuple[Measure, Supervisor]] = [
            (MEASURES[name], each) for name in MEASURES if name in arguments.only for each in supervisors
        ]
        if "floors" in arguments.only:
            runs.append((floors, Loop(Path(folder))))
        for measure, supervisor in runs:
            label = f"{supervisor.name} {measure.__name__}"
            noise[label] = observe.busy()
            print(f"{label} ...", file=sys.stderr, flush=True)
            try:
                figures.setdefault(supervisor.name, {}).update(measure(supervisor))
            except Exception as error:  # noqa: BLE001  one measure that fails must not lose the others
                print(f"{label}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                failed = True
                supervisor.end()
        if "mesh" in arguments.only:
            noise["mesh"] = observe.busy()
            print("mesh ...", file=sys.stderr, flush=True)
            try:
                stores = mesh.stores(Path(folder))
                figures |= mesh.placements(Path(folder))
            except Exception as error:  # noqa: BLE001  as above
                print(f"mesh: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                failed = True
            observe.clean_up()
        book = {
            "machine": {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()},
            "versions": {supervisor.name: supervisor.version for supervisor in supervisors},
            "figures": figures,
            "stores": stores,
            "busy_before": noise,
        }
    (arguments.out / "results.json").write_text(json.dumps(book, indent=1) + "\n")
    (arguments.out / "results.md").write_text(markdown(book))
    print(markdown(book))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

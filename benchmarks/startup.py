"""Seconds of `import heirloom` and of `heirloom --help`, beside Python alone and the library that reads the command line.

python benchmarks/startup.py [--repeats 21] [--json OUT]

Whole processes, one after the other in every round, so that a slow minute hurts all alike: wall time, and processor time,
which other work on the machine disturbs least. Compiled files lie in a temporary folder after a first round that is not
counted, as pip leaves them beside an installed package.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

AIM = 0.3  # seconds
AIMED_AT = "import heirloom", "heirloom --help"
UNIT = "import typer"


def commands() -> dict[str, list[str]]:
    """Every command by its name; the names of those of Python are what they run."""
    shell = shutil.which("heirloom", path=sysconfig.get_path("scripts"))
    if shell is None:
        raise SystemExit("There is no command heirloom beside this Python: pip install it first.")
    lines = {name: [sys.executable, "-c", name] for name in ("pass", UNIT, "import heirloom")}
    return lines | {"heirloom --help": [shell, "--help"]}


def processor_seconds() -> float:
    """That all ended child processes have used so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def rounds(lines: dict[str, list[str]], repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Run all commands in turn, once more than is counted.

    Args:
        lines: words of each command, by name.
        repeats: rounds that count.

    Returns:
        Wall and processor seconds of each round, by name.

    Raises:
        SystemExit: a command failed; with its words.
    """
    seconds = {name: [] for name in lines}
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"PYTHONPYCACHEPREFIX": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for _ in range(repeats + 1):
            for name, words in lines.items():
                busy, start = processor_seconds(), time.perf_counter()
                done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
                seconds[name].append((time.perf_counter() - start, processor_seconds() - busy))
                if done.returncode:
                    raise SystemExit(f"`{name}` failed: {done.stderr[-2000:]}")
    return {name: times[1:] for name, times in seconds.items()}


def summary(seconds: dict[str, list[tuple[float, float]]]) -> list[dict]:
    """Medians of each command, its fastest round, and its medians divided by those of `import typer`."""
    medians = {
        name: [statistics.median(one) for one in zip(*times, strict=True)] for name, times in seconds.items()
    }
    rows = []
    for name, (wall, processor) in medians.items():
        row = {
            "command": name,
            "wall": wall,
            "fastest": min(seconds[name])[0],
            "wall_ratio": wall / medians[UNIT][0],
        }
        row |= {"processor": processor, "processor_ratio": processor / medians[UNIT][1]}
        rows.append(row | ({"aim_met": wall < AIM} if name in AIMED_AT else {}))
    return rows


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write the numbers as JSON if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=21, help="rounds (default: 21)")
    parser.add_argument("--json", help="write the numbers there too")
    options = parser.parse_args(words)
    if options.repeats < 1:
        parser.error(f"--repeats must be 1 or more, found {options.repeats}")
    rows = summary(rounds(commands(), options.repeats))
    facts = {
        "date": datetime.date.today().isoformat(),
        "repeats": options.repeats,
        "cpus": os.cpu_count(),
        "versions": {"python": platform.python_version(), "typer": version("typer")},
    }
    names = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    print(f"{facts['date']}, {names}, {facts['cpus']} CPUs; {options.repeats} rounds\n")
    print(f"| | wall, s | x `{UNIT}` | fastest, s | processor, s | x `{UNIT}` | aim: wall below {AIM} s |")
    print("|---|---:|---:|---:|---:|---:|---|")
    for row in rows:
        aim = {True: "met", False: "missed", None: ""}[row.get("aim_met")]
        wall = f"{row['wall']:.3f} | {row['wall_ratio']:.2f} | {row['fastest']:.3f}"
        processor = f"{row['processor']:.3f} | {row['processor_ratio']:.2f}"
        print(f"| `{row['command']}` | {wall} | {processor} | {aim} |")
    if options.json:
        Path(options.json).write_text(json.dumps(facts | {"rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""The rows that are measured on whole commands, each in a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from condense.cli.demo import demo_file
from tests.benchmarks.costs import long_texts

Rows = Iterator[tuple[str, str]]
_UNTIL = """
import sys, time
from condense.diagnosis import forward as measuring
from condense.cli.app import main
def stop(*args, **more):
    print("BEGINS", time.time(), flush=True)
    raise SystemExit
measuring._BatchReader.launch = stop
sys.argv = ["condense", "analyze", sys.argv[1], "--no-cache"]
main()
"""


def _run(arguments: list[str]) -> tuple[int, str, float]:
    """Peak resident bytes of a command, its output and its processor time in seconds."""
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    output = process.stdout.read() if process.stdout else ""
    errors = process.stderr.read() if process.stderr else ""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(errors)
    return usage.ru_maxrss * 1024, output, usage.ru_utime + usage.ru_stime


def _analyze(count: int, length: int, folder: Path, *more: str) -> list[str]:
    text = folder / "texts.jsonl"
    text.write_text("".join(json.dumps({"text": each}) + "\n" for each in long_texts(count)), encoding="utf-8")
    where = ["--text", str(text), "--num-texts", str(count), "--max-length", str(length), "--device", "cpu"]
    return [sys.executable, "-m", "condense", "--quiet", "analyze", str(demo_file()), *where, "--no-cache", *more]


def memory(count: int, length: int) -> Rows:
    """Flat in the number of texts?"""
    sizes = (8, 32, 128)
    with tempfile.TemporaryDirectory() as folder:
        peaks = [_run(_analyze(size, length, Path(folder)))[0] / 1e6 for size in sizes]
    for size, peak in zip(sizes, peaks, strict=True):
        yield f"{size} texts of {length} tokens", f"{peak:7.0f} MB"
    yield "128 texts over 8", f"{peaks[-1] - peaks[0]:+7.0f} MB"


def start(count: int, length: int) -> Rows:
    """The median of three."""
    seconds = []
    for _ in range(4):
        begun = time.time()
        output = _run([sys.executable, "-c", _UNTIL, str(demo_file())])[1]
        seconds.append(float(output.split("BEGINS")[1].split()[0]) - begun)
    first, *later = seconds
    yield "first (a conversion, if the cache was empty)", f"{first:.1f} s"
    yield "later: median (smallest)", f"{sorted(later)[1]:.1f} s ({min(later):.1f} s)"


def estimate(count: int, length: int) -> Rows:
    """Peak memory and time of a run of 8 texts, said before and found."""
    with tempfile.TemporaryDirectory() as folder:
        for more in ((), ("--batch-size", "4"), ("--dtype", "bfloat16")):
            command = _analyze(8, length, Path(folder), *more)
            told = _run([*command, "--dry-run"])[1]
            begun = time.time()
            found = _run(command)[0]
            seconds = time.time() - begun
            amount, unit = re.search(r"memory +about ([\d.]+) (GB|MB)", told).groups()  # type: ignore[union-attr]
            said = float(amount) * {"GB": 1e9, "MB": 1e6}[unit]
            time_said = re.search(r"time +about (.+)", told)
            label = f"8 x {length} {' '.join(more)}".strip()
            yield (
                f"{label}: peak said / found",
                (f"{said / 1e6:.0f} / {found / 1e6:.0f} MB ({100 * (said / found - 1):+.0f} %)"),
            )
            yield f"{label}: time said / found", f"{time_said.group(1) if time_said else '?'} / {seconds:.0f} s"


def commands(count: int, length: int) -> Rows:
    """Processor time of whole commands that load no model, on a run of that many texts: the least of five."""
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "run.json"
        _run(_analyze(count, length, Path(folder), "--json", str(saved)))
        pages = [
            ("report", str(saved)),
            *(
                ("report", str(saved), f"--{kind}", f"{folder}/page.{kind}", "--force")
                for kind in ("html", "md", "csv")
            ),
        ]
        others = [("check", str(saved), "--baseline", str(saved)), ("compare", str(saved), str(saved)), ("--help",)]
        for command in (*pages, *others):
            taken = [_run([sys.executable, "-m", "condense", *command])[2] for _ in range(5)]
            label = " ".join(word for word in command if folder not in word)
            yield label, f"{min(taken):.2f} s (to {max(taken):.2f} s)"

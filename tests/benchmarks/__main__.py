"""`make bench`, or `python -m tests.benchmarks [rows] [--texts N] [--length S]`: prints a table, row by row."""

from __future__ import annotations

import argparse
import os
import sys

import torch

from tests.benchmarks import costs, gpu, precision, whole

ROWS = {
    "forward": (costs.forward, "analyze per text over the plain LM forward, interleaved"),
    "parts": (costs.parts, "where the time of a text goes"),
    "memory": (whole.memory, "peak memory of whole runs, each in a process of its own"),
    "start": (whole.start, "from the start of the process until measuring begins, second run of the .gguf"),
    "commands": (whole.commands, "processor time of commands that load no model"),
    "estimate": (whole.estimate, "what --dry-run says against what a run takes"),
    "gpu": (lambda texts, length: gpu.table(), "a step with each loss, and analyze, on a GPU where there is one"),
    "precision": (lambda texts, length: precision.table(), "gradients with coarser matrix products against float64"),
    "batches": (costs.batches, "batch of 1 against batch of 4"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="row", help=f"of {', '.join(ROWS)}; default: all")
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--threads", type=int, help="1 on a busy machine: then the CPU time can be trusted")
    options = parser.parse_args()
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"no row {', '.join(unknown)}")
    if options.threads:
        torch.set_num_threads(options.threads)
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
    load = os.getloadavg()
    threads = torch.get_num_threads()
    print(f"{os.cpu_count()} cores, {threads} threads, load {load[0]:.1f} {load[1]:.1f} before", flush=True)
    if load[0] > 0.5:
        print("the machine is busy: ratios below are not to be trusted", file=sys.stderr)
    for name in options.rows or [name for name in ROWS if name != "gpu" or torch.cuda.is_available()]:
        run, title = ROWS[name]
        print(f"\n{name}: {title}", flush=True)
        for label, value in run(options.texts, options.length):
            print(f"  {label:<44} {value}", flush=True)
    print(f"\nload {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()

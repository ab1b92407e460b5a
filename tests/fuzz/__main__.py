"""A longer fuzz: ``python -m tests.fuzz --command-lines 3000 --damages 2000 --seed 7``. Exit code 1 with complaints."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.cases import fuzz, ground
from tests.support import tiny_llama

arguments = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
arguments.add_argument("--command-lines", type=int, default=3000)
arguments.add_argument("--damages", type=int, default=2000)
arguments.add_argument("--seed", type=int, default=int(time.time()))
given = arguments.parse_args()
with tempfile.TemporaryDirectory() as folder:
    model = tiny_llama.save(Path(folder) / "tiny-llama")
    with ground(Path(folder), model) as at:
        found = fuzz(at, command_lines=given.command_lines, damages=given.damages, seed=given.seed)
print("\n".join(found) or f"Nothing to complain of (seed {given.seed}).")
sys.exit(bool(found))

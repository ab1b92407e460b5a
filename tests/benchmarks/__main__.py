"""Run the benchmarks: `python -m tests.benchmarks [names] [--device cuda] [--scale 8b]`, `--table` to print the
published table."""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import pkgutil
import platform
import sys
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
NOT_BENCHMARKS = ("timing", "__main__")


def modules() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules([str(HERE)]) if m.name not in NOT_BENCHMARKS)


def number(x: float) -> str:
    """Three digits, without an exponent."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def table(results: dict) -> str:
    """The published table, in Markdown, from the raw results."""
    lines = [
        "| what | against | reference | ours | ratio (range) | agreement | machine |",
        "|---|---|---:|---:|---:|---|---|",
    ]
    for key in sorted(results):
        r = results[key]
        low, high = r["details"].get("ratio_low"), r["details"].get("ratio_high")
        bound = r["details"].get("arithmetic_allows")
        limits = [f"{low:.3g}–{high:.3g}"] if low is not None else []
        limits += [f"arithmetic allows {bound:.2g}×"] if bound else []
        spread = f" ({'; '.join(limits)})" if limits else ""
        lines.append(
            f"| {r['name']} | {r['details'].get('against', '')} | {number(r['reference'])} {r['unit']} | "
            f"{number(r['ours'])} {r['unit']} "
            f"| {r['ratio']:.3g}×{spread} | {r['agreement']} | {r['machine']} |"
        )
    return "\n".join(lines)


def without_old(results: dict, benchmark: str, how: str) -> dict:
    """The results without the rows of a benchmark that is measured anew in the same way, also those of what it no
    longer measures; its rows begin with its name."""
    return {key: r for key, r in results.items() if not (key.startswith(f"{benchmark}: ") and key.endswith(how))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"which of: {', '.join(modules())} (default: all)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scale", default="small")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="processor threads of both sides (default 1: other work on the machine disturbs them least)",
    )
    parser.add_argument("--table", action="store_true", help="print the table of the committed results and stop")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if options.table:
        print(table(results))
        return 0
    import torch

    cpu = options.device == "cpu"
    if cpu:
        torch.set_num_threads(options.threads)
    threads = f"{options.threads} thread{'s' if options.threads > 1 else ''}"
    for name in options.names or modules():
        module = importlib.import_module(f"tests.benchmarks.{name}")
        print(f"{name} …", file=sys.stderr, flush=True)
        found = module.measure(device=options.device, scale=options.scale)
        how = f"{options.device}, {options.scale}{f', {threads}' if cpu and options.threads > 1 else ''}"
        results = without_old(results, name, f"[{how}]")
        for r in found if isinstance(found, list) else [found]:
            machine = (
                torch.cuda.get_device_name()
                if options.device.startswith("cuda")
                else f"{platform.machine()} CPU, {threads}"
            )
            r |= {
                "machine": machine,
                "scale": options.scale,
                "date": datetime.date.today().isoformat(),
                "torch": torch.__version__,
                "cores": os.cpu_count(),
                "load": os.getloadavg()[0],
            }
            results[f"{r['name']} [{how}]"] = r
            RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
            print(
                f"  {r['name']}: {r['ours']:.4g} {r['unit']} against {r['reference']:.4g}, {r['ratio']:.3g}×, "
                f"{r['agreement']}",
                file=sys.stderr,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())

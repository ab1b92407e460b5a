"""Run the benchmarks: `python -m tests.benchmarks [names]`; `--table` prints the published table.

`--device cuda --scale 8b` measures every row for one card on random weights of that shape, within ten minutes and
80 GB; `--device virtual --scale tiny` rehearses the same without one. `--counts` counts launches and waits on the
virtual accelerator, and writes launches.json and their table in the README."""

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
NOT_BENCHMARKS = ("timing", "card", "card_rows", "card_run", "__main__")
CARD = ("8b", "tiny")  # scales at which all rows are those of one card


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
        for share, of in (("share_of_matmul_peak", "the matmul peak"), ("share_of_bandwidth", "the bandwidth")):
            limits += [f"{r['details'][share]:.0%} of {of}"] if share in r["details"] else []
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
    parser.add_argument("--out", type=Path, help="where results go (default: results.json; a rehearsal leaves none)")
    parser.add_argument("--counts", action="store_true", help="count launches and waits, write them down and stop")
    parser.add_argument("--table", action="store_true", help="print the table of the committed results and stop")
    options = parser.parse_args()
    path = options.out or RESULTS
    results = json.loads(path.read_text()) if path.exists() else {}
    if options.table:
        print(table(results))
        return 0
    if options.counts:
        from tests.benchmarks.card_run import publish

        publish()
        return 0
    if options.scale in CARD and not options.names:
        return one_card(options.device, options.scale, options.out)
    import torch

    if options.device == "cpu":
        torch.set_num_threads(options.threads)
    for name in options.names or modules():
        module = importlib.import_module(f"tests.benchmarks.{name}")
        print(f"{name} …", file=sys.stderr, flush=True)
        found = module.measure(device=options.device, scale=options.scale)
        how = how_measured(options.device, options.scale, options.threads)
        results = without_old(results, name, f"[{how}]")
        for r in found if isinstance(found, list) else [found]:
            results[f"{r['name']} [{how}]"] = r | where(options.device, options.scale, options.threads)
            path.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
            print(line(r), file=sys.stderr)
    return 0


def one_card(device: str, scale: str, out: Path | None) -> int:
    """Every row of one card; a rehearsal is written down only where `out` says so."""
    from tests.benchmarks.card_run import measure, there

    path = out or (RESULTS if scale == "8b" else None)
    kept = json.loads(path.read_text()) if path is not None and path.exists() else {}
    how, new = f"[{how_measured(device, scale, 1)}]", {}
    kept = {key: r for key, r in kept.items() if not key.endswith(how)}
    with there(device):
        for r in measure(device, scale):
            new[f"{r['name']} {how}"] = r | where(device, scale, 1)
            print(line(r), file=sys.stderr)
            if dropped := r["details"]["rounds_dropped"]:
                print(f"  {dropped} of its rounds were dropped: there was no time", file=sys.stderr)
            if path is not None:
                path.write_text(json.dumps(kept | new, indent=1, sort_keys=True) + "\n")
    print(table(new))
    return 0


def how_measured(device: str, scale: str, threads: int) -> str:
    several = f", {threads} threads" if device == "cpu" and threads > 1 else ""
    return f"{device}, {scale}{several}"


def where(device: str, scale: str, threads: int) -> dict:
    """On what a row was measured."""
    import torch

    from workbench.models import devices

    cpu = f"{platform.machine()} CPU, {threads} thread{'s' if threads > 1 else ''}"
    return {
        "machine": cpu if devices.is_cpu(device) else devices.name(device),
        "scale": scale,
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }


def line(r: dict) -> str:
    return (
        f"  {r['name']}: {r['ours']:.4g} {r['unit']} against {r['reference']:.4g}, {r['ratio']:.3g}×, {r['agreement']}"
    )


if __name__ == "__main__":
    sys.exit(main())

"""Runs the retrieval probe in forked children of one warm process and kills them: `python retrieval_children.py FOLDER
KILLS`.

Prints JSON: of every run that was killed on the way, its folder, how often it was killed and the groups that were
computed; the undisturbed run is in FOLDER/undisturbed.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

CONFIG = {
    "lengths": (96, 160),
    "depths": (0, 60),
    "needles": 3,
    "max_new_tokens": 8,
    "mask_k": (1,),
    "random_draws": 1,
    "mask_trials": 4,
    "draws": 100,
    "max_tokens": 480,
}


def main(root: Path, kills: int) -> None:
    import torch

    torch.set_num_threads(1)
    from probes.retrieval_heads import detection, masking
    from workbench.models.loading import load
    from workbench.models.needle_prompts import recall
    from workbench.runs.execution import execute

    # What every child would do first is done here; polars is only imported, as its threads would not be in the
    # children.
    model = load("organism")
    model.fingerprint, model.tokenizer_fingerprint, recall("a", "a")
    with torch.no_grad():
        model.hf(torch.arange(160)[None])

    def child(name: str) -> int:
        """Start the run, or go on with it, in a process of its own; every group that is computed leaves a line."""
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            for module, kind in ((detection, "_measure_part"), (masking, "_mask_group")):

                def noted(*args, compute=getattr(module, kind), kind=kind, **more):
                    found = compute(*args, **more)
                    with open(root / f"{name}.log", "a") as file:
                        file.write(kind + "\n")
                    return found

                setattr(module, kind, noted)
            execute("retrieval-heads", model, config=CONFIG, out=root / name)
            status = 0
        finally:
            os._exit(status)

    def finish(name: str) -> float:
        begun, (_, status) = time.perf_counter(), os.waitpid(child(name), 0)
        assert status == 0, f"{name} ended with {status}"
        return time.perf_counter() - begun

    seconds, dice, done, names = finish("undisturbed"), random.Random(0), 0, {}
    while done < kills:
        name = f"killed-{len(names)}"
        names[name] = 0
        while done < kills:
            pid = child(name)
            time.sleep(dice.uniform(0.02, 0.6) * seconds)
            os.kill(
                pid, signal.SIGKILL
            )  # a child that has ended stays until it is waited for: the number is still its own
            if os.waitpid(pid, 0)[1] == 0:
                break
            done, names[name] = done + 1, names[name] + 1
        else:
            finish(name)
    runs = {name: {"kills": n, "computed": (root / f"{name}.log").read_text().split()} for name, n in names.items()}
    print(json.dumps({"runs": runs, "undisturbed": (root / "undisturbed.log").read_text().split()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

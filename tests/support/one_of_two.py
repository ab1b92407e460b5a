"""A process of two that have a part of a model each: it keeps what it reads, and the sentences with which it refuses
the rest. `python -m tests.support.one_of_two RANK MODEL OUT`."""

import functools
import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from workbench import probe
from workbench.core.errors import InputError
from workbench.engine.capture import capture, logits
from workbench.engine.generate import greedy
from workbench.models.loading import load

IDS = [[1, 5, 9, 13, 20], [1, 7, 3]]
SITES = ("resid_pre.0", "resid_mid.1", "attn_out.1", "mlp_in.1", "mlp_out.1", "resid_post.1", "final_norm")


def read(model) -> dict:
    """What a process that has a part of the model can read."""
    found = {site: capture(model, IDS, [site], positions="all")[site] for site in SITES}
    return found | {"logits": logits(model, IDS), "greedy": greedy(model, IDS, max_new_tokens=5)}


def refused(model) -> list[str]:
    sentences = []
    for ask in (
        functools.partial(capture, model, IDS, ["head_out.1"]),
        functools.partial(capture, model, IDS, ["mlp_hidden.1"]),
        functools.partial(probe("representation-geometry").run, model),
    ):
        with pytest.raises(InputError) as error:
            ask()
        sentences.append(str(error.value))
    return sentences


def main(rank: int, folder: str, out: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out / 'meeting'}", rank=rank, world_size=2)
    model = load(folder, tp_plan="auto")
    torch.save(read(model) | {"refused": refused(model)}, out / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))

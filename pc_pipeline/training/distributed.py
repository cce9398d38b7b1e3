"""Several processes that train one model: who this process is, and one gradient of all of them.

Here: `Team`. Not here: the loop that uses it (`training.loop`).

Under `torchrun` every process runs the same script and takes its share of each batch's rows; the gradient
that all of them step with is the row-weighted mean, so N processes with batch B compute what one would with
batch N B. One all-reduce of all gradients in one vector, after the backward pass: losses here call several
methods of a model, which DistributedDataParallel (a wrapper of `forward`) does not see, and the networks
have under 10 million parameters, so there is nothing to overlap. Without torchrun a team has one
member and nothing is sent. Repeatable at a fixed number of processes, not across numbers.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pc_pipeline.core.errors import ModelError


@dataclass(frozen=True, slots=True)
class Team:
    """The processes of a run: this one's rank from 0, and how many there are."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: torch.device) -> Team:
        """The team that torchrun made, joined on first use; alone otherwise."""
        if not dist.is_available():
            return cls()
        if not dist.is_initialized():
            if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "MASTER_ADDR" not in os.environ:
                return cls()
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this process writes and tells."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """This process's part of a batch's rows; may be empty where rows are fewer than processes."""
        return rows[self.rank :: self.size]

    def begin_alike(self, model: nn.Module) -> None:
        """Every process takes the first one's weights."""
        if self.size > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, src=0)

    def join_gradients(self, model: nn.Module, weight: float) -> None:
        """Replace gradients by the weighted sum over processes; weights of all processes sum to 1."""
        if self.size == 1:
            return
        wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
        flat = torch.cat(
            [
                (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).flatten()
                for parameter in wanted
            ]
        )
        flat *= weight
        dist.all_reduce(flat)
        for parameter, grad in zip(wanted, flat.split([p.numel() for p in wanted]), strict=True):
            parameter.grad = grad.view_as(parameter).clone()

    def total(self, value: float, device: torch.device) -> float:
        """Sum over processes."""
        if self.size == 1:
            return value
        summed = torch.tensor([value], dtype=torch.float64, device=device)
        dist.all_reduce(summed)
        return float(summed)

    def agree(self, value: float, device: torch.device) -> float:
        """The first process's value: what decides (early stopping) must be one number."""
        if self.size == 1:
            return value
        said = torch.tensor([value], dtype=torch.float64, device=device)
        dist.broadcast(said, src=0)
        return float(said)

    def check_digest(self, digest: str, device: torch.device) -> None:
        """All processes must train the same run on the same data.

        Raises:
            ModelError: they do not.
        """
        if self.size == 1:
            return
        number = int(digest[:15], 16)
        extremes = torch.tensor([number, -number], device=device)
        dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
        if int(extremes.sum()) != 0:
            raise ModelError(
                "processes train different runs", expected="the same data and settings", where="torchrun"
            )


def leave_team() -> None:
    """End the process group, at the end of a script run by torchrun."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()

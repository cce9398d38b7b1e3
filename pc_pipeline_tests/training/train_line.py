"""A small training that can be run as a script, killed, or run by torchrun.

python -m pc_pipeline_tests.training.train_line RESUME_FILE          slow epochs, resume file
torchrun --nproc-per-node 2 -m pc_pipeline_tests.training.train_line --out FILE
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pc_pipeline.training.config import TrainConfig
from pc_pipeline.training.distributed import leave_team
from pc_pipeline.training.loop import run_training

CONFIG = TrainConfig(epochs=8, batch_size=10, lr=0.05, n_threads=1, patience=100)


def train(
    config: TrainConfig = CONFIG, dropout: float = 0.2, **options: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """Train a line; returns the model and its history."""
    torch.manual_seed(0)
    x = torch.randn(40, 3)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.3
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))

    def loss_of(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return nn.functional.mse_loss(model(x[rows]), y[rows])

    def check() -> float:
        return float(nn.functional.mse_loss(model(x), y))

    return model, run_training(model, 40, loss_of, config, name="line", validation_loss=check, **options)


def main() -> None:
    """See the module's first lines."""
    if sys.argv[1] == "--out":
        model, history = train(dropout=0.0)
        said = {"loss": history["loss"], "weight": model[0].weight.flatten().tolist()}
        out = Path(sys.argv[2])
        if int(os.environ["RANK"]) == 0:
            out.write_text(json.dumps(said))
        leave_team()
        return

    def slowly(record: Any) -> None:
        print(record["epoch"], flush=True)
        time.sleep(0.5)

    train(resume=sys.argv[1], on_epoch=slowly)


if __name__ == "__main__":
    main()

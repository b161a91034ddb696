"""The layers of `networks.Layer` that PyTorch has no module for."""

from __future__ import annotations

import torch
from torch import nn


class Residual(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


class Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=1)


class SkipGram(nn.Module):
    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.words, self.contexts = nn.Embedding(rows, width), nn.Embedding(rows, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.words(x[:, :1]) * self.contexts(x[:, 1:])).sum(dim=-1)

"""Two steps of an eager PyTorch training."""

import time

import measured
import torch
from torch import nn

imported = time.time()
sizes = measured.arguments()
modules: list[nn.Module] = []
for weight, bias in measured.weights(sizes):
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
    modules += [linear, nn.ReLU()]
model = nn.Sequential(*modules[:-1])
optimizer = torch.optim.Adam(model.parameters(), lr=measured.LR, fused=True)


def step(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    loss = nn.functional.cross_entropy(model(x), t)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss


x, t = map(torch.from_numpy, measured.batch(sizes))
step(x, t)
measured.say(imported=imported, loss=step(x, t).item())

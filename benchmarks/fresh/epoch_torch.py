"""One epoch in eager PyTorch; batches are cut from a permutation, as its DataLoader takes longer."""

import epoch_data
import measured
import torch
from torch import nn

x, t, x_test, t_test = map(torch.from_numpy, epoch_data.load())
modules: list[nn.Module] = []
for n, m in zip(epoch_data.SIZES, epoch_data.SIZES[1:], strict=False):
    modules += [nn.Linear(n, m), nn.ReLU()]
model = nn.Sequential(*modules[:-1])
optimizer = torch.optim.Adam(model.parameters(), lr=measured.LR, fused=True)
for rows in torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).split(epoch_data.BATCH):
    loss = nn.functional.cross_entropy(model(x[rows]), t[rows])
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
with torch.no_grad():
    accuracy = (model(x_test).argmax(1) == t_test).float().mean()
measured.say(accuracy=accuracy.item())

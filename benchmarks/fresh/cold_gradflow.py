"""Two steps of a compiled gradflow training."""

import time

import measured

import gradflow as gf

imported = time.time()
sizes = measured.arguments()
model = gf.nn.MLP(sizes, gf.nn.ReLU)
with gf.no_grad():
    arrays = [array for layer in measured.weights(sizes) for array in layer]
    for parameter, value in zip(model.parameters(), arrays, strict=True):
        parameter[...] = value
optimizer = gf.optim.Adam(model.parameters(), lr=measured.LR)


@gf.compile
def step(x: gf.Tensor, t: gf.Tensor) -> gf.Tensor:
    loss = gf.cross_entropy(model(x), t)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


x, t = map(gf.tensor, measured.batch(sizes))
step(x, t)
measured.say(imported=imported, loss=step(x, t).item())

"""Two steps of a jitted JAX training."""

import time

import measured
from jax_training import start, step

imported = time.time()
sizes = measured.arguments()
x, t = measured.batch(sizes)
state = start(sizes)
state, _ = step(state, x, t)
state, loss = step(state, x, t)
measured.say(imported=imported, loss=loss.item())

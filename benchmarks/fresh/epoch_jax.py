"""One epoch in jitted JAX; batches are cut from a permutation."""

import epoch_data
import measured
import numpy as np
from jax_training import forward, start, step

x, t, x_test, t_test = epoch_data.load()
state = start(epoch_data.SIZES)
order = np.random.default_rng(0).permutation(len(x))
for first in range(0, len(x), epoch_data.BATCH):
    rows = order[first : first + epoch_data.BATCH]
    state, _ = step(state, x[rows], t[rows])
accuracy = (np.asarray(forward(state[0], x_test)).argmax(1) == t_test).mean()
measured.say(accuracy=float(accuracy))

"""One epoch with scikit-learn's MLPClassifier."""

import warnings

import epoch_data
import measured
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

x, t, x_test, t_test = epoch_data.load()
model = MLPClassifier(
    tuple(epoch_data.SIZES[1:-1]), alpha=0.0, batch_size=epoch_data.BATCH, learning_rate_init=measured.LR, max_iter=1,
    random_state=0,
)  # fmt: skip
with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
    model.fit(x, t)
measured.say(accuracy=float(model.score(x_test, t_test)))

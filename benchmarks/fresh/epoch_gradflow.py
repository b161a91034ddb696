"""One epoch with `gf.training.fit`, compiled."""

import epoch_data
import measured

import gradflow as gf

x, t, x_test, t_test = epoch_data.load()
loader = gf.data.DataLoader(gf.data.TensorDataset(x, t), epoch_data.BATCH, shuffle=True, seed=0)
model = gf.nn.MLP(epoch_data.SIZES)
optimizer = gf.optim.Adam(model.parameters(), lr=measured.LR)
gf.training.fit(model, gf.nn.CrossEntropyLoss(), optimizer, loader, epochs=1, progress=False, compile=True)
with gf.no_grad():
    accuracy = gf.training.accuracy(model(gf.tensor(x_test)), gf.tensor(t_test))
measured.say(accuracy=accuracy.item())

"""Linear regression by two instances of one program, each with half of the data."""

import popdist
import popdist.poptorch
import poptorch
import torch


class Regression(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = torch.nn.Parameter(torch.zeros(3))

    def forward(self, x, y):
        return torch.nn.functional.mse_loss(x @ self.weights, y)


popdist.init()
assert popdist.isPopdistEnvSet() and popdist.getNumInstances() == popdist.getNumTotalReplicas() == 2
options = popdist.poptorch.Options(ipus_per_replica=1)
model = Regression()
training = poptorch.trainingModel(model, options, poptorch.optim.SGD(model.parameters(), lr=0.2))
# Only the second instance sees the second target: both learn it only if gradients are reduced.
x = torch.eye(3).repeat(16, 1)
y = torch.where(torch.arange(48) < 24, 0.0, 1.0)
loader = poptorch.DataLoader(options, torch.utils.data.TensorDataset(x, y), batch_size=24)
assert len(loader) == 1
for _step in range(120):
    for batch in loader:
        training(*batch)
if popdist.getInstanceIndex() == 0:
    print("weights", " ".join(f"{weight:.3f}" for weight in model.weights.tolist()))
assert torch.allclose(model.weights, torch.full((3,), 0.5), atol=1e-2)
popdist.finalize()

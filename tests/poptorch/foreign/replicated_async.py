"""Linear regression on four replicas, fed by an asynchronous loader with worker processes."""

import popdist
import popdist.poptorch
import poptorch
import torch


class Points(torch.utils.data.Dataset):
    """y = x . w without noise."""

    def __init__(self, count):
        self.x = torch.randn(count, 3, generator=torch.Generator().manual_seed(5))
        self.y = self.x @ torch.tensor([1.0, -2.0, 0.5])

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.y[index]


class Regression(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = torch.nn.Parameter(torch.zeros(3))

    def forward(self, x, y):
        return torch.nn.functional.mse_loss(x @ self.weights, y)


def main():
    popdist.init()
    assert (popdist.getNumInstances(), popdist.getInstanceIndex()) == (1, 0)
    if popdist.isPopdistEnvSet():  # PopRun sets the replicas
        options = popdist.poptorch.Options(ipus_per_replica=1)
    else:
        options = poptorch.Options().replicationFactor(4)
    options.deviceIterations(2).outputMode(poptorch.OutputMode.Final)
    model = Regression()
    training = poptorch.trainingModel(model, options, poptorch.optim.SGD(model.parameters(), lr=0.2))
    loader = poptorch.DataLoader(
        options, Points(320), batch_size=4, num_workers=2, mode=poptorch.DataLoaderMode.Async
    )
    assert loader.combinedBatchSize == 32 and len(loader) == 10
    for _epoch in range(4):
        for x, y in loader:
            assert x.shape == (32, 3)
            losses = training(x, y)
            assert losses.shape == (4,), "one loss for each replica"
    loader.terminate()
    print("weights", " ".join(f"{weight:.3f}" for weight in model.weights.tolist()))
    assert torch.allclose(model.weights, torch.tensor([1.0, -2.0, 0.5]), atol=1e-2)
    popdist.finalize()


if __name__ == "__main__":
    main()

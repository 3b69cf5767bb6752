"""A float16 classifier with float16 accumulators, a custom loss and torchmetrics over replicas."""

import poptorch
import torch
import torchmetrics
from torch import nn


class Focal(nn.Module):
    def forward(self, logits, labels):
        chosen = torch.gather(logits.log_softmax(1), 1, labels[:, None])
        loss = -((1 - chosen.exp()) ** 2 * chosen)
        return poptorch.identity_loss(loss, reduction="mean")


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 3))
        self.loss = Focal()

    def forward(self, x, labels=None):
        logits = self.body(x)
        if labels is None:
            return logits
        return logits, self.loss(logits, labels)


class Clusters(torch.utils.data.Dataset):
    centers = torch.eye(3).repeat(1, 2) * 3

    def __len__(self):
        return 240

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return (self.centers[index % 3] + torch.randn(6, generator=generator)).half(), index % 3


def main():
    torch.manual_seed(9)
    model = Classifier().half().train()
    options = poptorch.Options().replicationFactor(2).deviceIterations(2).randomSeed(1)
    options.Training.gradientAccumulation(3)
    options.Precision.setPartialsType(torch.half).enableStochasticRounding(True)
    optimizer = poptorch.optim.AdamW(
        model.parameters(),
        lr=2e-2,
        loss_scaling=128.0,
        accum_type=torch.float16,
        first_order_momentum_accum_type=torch.float16,
        second_order_momentum_accum_type=torch.float32,
    )
    training = poptorch.trainingModel(model, options, optimizer)
    # A sum would overflow float16 accumulators: PopTorch switches to a running mean automatically.
    strategy = training.options.Training.meanAccumulationAndReplicationReductionStrategy
    assert strategy == poptorch.MeanReductionStrategy.Running
    loader = poptorch.DataLoader(options, Clusters(), batch_size=5, shuffle=True, num_workers=2)
    assert loader.combinedBatchSize == 60
    for _epoch in range(6):
        for x, labels in loader:
            logits, loss = training(x, labels)
            assert logits.shape == (10, 3) and loss.shape == (2,) and logits.dtype == torch.float16
    training.detachFromDevice()

    model.eval()
    options = poptorch.Options().replicationFactor(2).deviceIterations(4)
    inference = poptorch.inferenceModel(model, options)
    metric = torchmetrics.Accuracy(task="multiclass", num_classes=3)
    with torch.inference_mode():
        for x, labels in poptorch.DataLoader(
            options,
            Clusters(),
            batch_size=5,
            num_workers=2,
            mode=poptorch.DataLoaderMode.AsyncRebatched,
            rebatched_worker_size=7,
        ):
            metric.update(inference(x).float(), labels)
    print(f"accuracy {metric.compute():.3f}")
    assert metric.compute() > 0.9
    assert model.body[0].weight.dtype == torch.float16


if __name__ == "__main__":
    main()

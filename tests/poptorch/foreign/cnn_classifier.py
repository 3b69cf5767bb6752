"""Classifies noisy stripes, horizontal or vertical, with a CNN with batch normalisation."""

import poptorch
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )
        self.classifier = nn.Linear(32, 2)
        self.loss = nn.CrossEntropyLoss()

    def forward(self, images, labels=None):
        logits = self.classifier(self.features(images))
        if labels is None:
            return logits
        return logits.argmax(dim=1), self.loss(logits, labels)


def stripes(count):
    labels = torch.arange(count) % 2
    images = torch.randn(count, 1, 8, 8) * 0.3
    images[labels == 0, :, ::2, :] += 1.0
    images[labels == 1, :, :, ::2] += 1.0
    return torch.utils.data.TensorDataset(images, labels)


torch.manual_seed(1)
model = Net()
options = poptorch.Options().deviceIterations(2).randomSeed(2)
options.Training.gradientAccumulation(2)
options.outputMode(poptorch.OutputMode.All)
loader = poptorch.DataLoader(options, stripes(128), batch_size=4, shuffle=True)
optimizer = poptorch.optim.Adam(model.parameters(), lr=0.01)
training = poptorch.trainingModel(model, options=options, optimizer=optimizer)
losses = []
for _epoch in range(4):
    for images, labels in loader:
        predicted, loss = training(images, labels)
        assert predicted.shape == (16,) and predicted.dtype == torch.int32 and loss.shape == (4,)
        losses.append(loss.mean().item())
assert model.features[1].num_batches_tracked > 0, "batch normalisation didn't see the batches"
training.detachFromDevice()

model.eval()
inference = poptorch.inferenceModel(model)
images, labels = stripes(32).tensors
accuracy = (inference(images).argmax(dim=1) == labels).float().mean().item()
print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}, accuracy {accuracy:.3f}")
assert losses[-1] < 0.6 * losses[0] and accuracy > 0.9

"""An LSTM that classifies sequences by which of two marks they contain."""

import poptorch
import torch
from torch import nn


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 16)
        self.lstm = nn.LSTM(16, 24, batch_first=True)
        self.output = nn.Linear(24, 2)

    def forward(self, sequences, labels=None):
        states, (last, _cell) = self.lstm(self.embedding(sequences))
        logits = self.output(last.squeeze(0))
        if labels is None:
            return {"logits": logits, "states": states}
        return poptorch.identity_loss(nn.functional.cross_entropy(logits, labels), reduction="mean")


def batch(count):
    """Marks are 8 and 9; everything else is noise."""
    sequences = torch.randint(8, (count, 7))
    labels = torch.randint(2, (count,))
    sequences[torch.arange(count), torch.randint(7, (count,))] = 8 + labels
    return sequences, labels


torch.manual_seed(4)
model = Tagger()
optimizer = poptorch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, use_combined_accum=False)
training = poptorch.trainingModel(model, optimizer=optimizer)
losses = [float(training(*batch(64))) for _step in range(80)]

sequences, labels = batch(64)
inference = poptorch.inferenceModel(model)
outputs = inference(sequences)
assert outputs["states"].shape == (64, 7, 24)
accuracy = (outputs["logits"].argmax(1) == labels).float().mean().item()
print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}, accuracy {accuracy:.3f}")
assert losses[-1] < 0.3 * losses[0] and accuracy > 0.95
# The weights were downloaded: on the CPU, the same module gives the device's results.
poptorch.testing.allclose(model(sequences)["logits"], outputs["logits"])

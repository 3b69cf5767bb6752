"""A transformer encoder over four IPUs that learns to reverse sequences; popart in its options."""

import popart
import poptorch
import torch
from torch import nn

VOCABULARY, LENGTH, WIDTH, LAYERS = 12, 6, 32, 2


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Parameter(torch.randn(LENGTH, WIDTH))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 2, 64, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(LAYERS)
        )
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens, targets):
        hidden = self.tokens(tokens) + self.positions
        for layer in self.layers:
            hidden = poptorch.recomputationCheckpoint(layer(hidden))
        logits = self.head(hidden)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return poptorch.identity_loss(loss, reduction="none")


torch.manual_seed(3)
model = Encoder()
poptorch.BeginBlock(model.tokens, "Embedding", ipu_id=0)
for index, layer in enumerate(model.layers):
    poptorch.BeginBlock(layer, f"Layer{index}", ipu_id=index + 1)
poptorch.BeginBlock(model.head, "Head", ipu_id=3)

options = poptorch.Options()
options.setExecutionStrategy(poptorch.PipelinedExecution(poptorch.AutoStage.AutoIncrement))
options.Training.gradientAccumulation(7)
options.outputMode(poptorch.OutputMode.Sum)
options.setAvailableMemoryProportion({f"IPU{index}": 0.3 for index in range(4)})
options.TensorLocations.setOptimizerLocation(poptorch.TensorLocationSettings().useOnChipStorage(False))
schedule = popart.AccumulateOuterFragmentSchedule.OverlapMemoryOptimized
options._Popart.set("accumulateOuterFragmentSettings.schedule", int(schedule))
options._Popart.set("subgraphCopyingStrategy", int(popart.SubgraphCopyingStrategy.JustInTime))

optimizer = poptorch.optim.AdamW(model.parameters(), lr=1e-2, loss_scaling=128.0, weight_decay=0.0)
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10))
training = poptorch.trainingModel(model, options, optimizer)
tokens = torch.randint(VOCABULARY, (7 * 8, LENGTH))
training.compile(tokens, tokens.flip(1))
losses = []
for _step in range(25):
    tokens = torch.randint(VOCABULARY, (7 * 8, LENGTH))
    losses.append(training(tokens, tokens.flip(1)).item() / 7)
    scheduler.step()
    training.setOptimizer(optimizer)
print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")
assert losses[-1] < 0.5 * losses[0]

options = poptorch.Options().setExecutionStrategy(
    poptorch.PipelinedExecution(poptorch.AutoStage.AutoIncrement)
)
try:
    poptorch.inferenceModel(model, options)(tokens, tokens.flip(1))
except poptorch.Error as error:
    assert "deviceIterations must be greater than or equal to the number of pipeline stages (4)" in str(error)
else:
    raise SystemExit("a pipeline that can't be filled was accepted")

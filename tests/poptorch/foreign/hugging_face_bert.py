"""transformers' BERT, pipelined over three IPUs as optimum-graphcore does; saved and loaded again."""

import argparse
import copy

import poptorch
import torch
import transformers

parser = argparse.ArgumentParser()
parser.add_argument("folder")
folder = parser.parse_args().folder

torch.manual_seed(8)
config = transformers.BertConfig(
    vocab_size=64,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=16,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    attn_implementation="eager",
)
model = transformers.BertForSequenceClassification(config).train()
reference = copy.deepcopy(model)


def checkpointed(_module, _inputs, output):
    return poptorch.recomputationCheckpoint(output)


def outlined(layer, name):
    """Sets attributes of a layer's operations by hooks, as applications do that can't change the layer."""
    attribute = poptorch.Attribute(__outline={"layer": name})
    layer.register_forward_pre_hook(lambda *_: attribute.__enter__())
    layer.register_forward_hook(lambda *_: attribute.__exit__(None, None, None))


def parallelize(bert):
    poptorch.BeginBlock(bert.bert.embeddings, "Embedding", ipu_id=0)
    outlined(bert.bert.embeddings, "embedding")
    for index, layer in enumerate(bert.bert.encoder.layer):
        layer.register_forward_hook(checkpointed)
        poptorch.BeginBlock(layer, f"Encoder{index}", ipu_id=index + 1)
    poptorch.BeginBlock(bert.classifier, "Classifier", ipu_id=2)


parallelize(model)
options = poptorch.Options()
options.Training.gradientAccumulation(5)
options.setExecutionStrategy(poptorch.PipelinedExecution(poptorch.AutoStage.AutoIncrement))
options.autoRoundNumIPUs(True)
without_decay = [weight for name, weight in model.named_parameters() if name.endswith("bias")]
with_decay = [weight for name, weight in model.named_parameters() if not name.endswith("bias")]
optimizer = poptorch.optim.AdamW(
    [{"params": with_decay, "weight_decay": 0.01}, {"params": without_decay, "weight_decay": 0.0}], lr=5e-3
)
schedule = transformers.get_linear_schedule_with_warmup(optimizer, 2, 20)
optimizer._step_count = 1
training = poptorch.trainingModel(model, options, optimizer)

ids = torch.randint(4, 64, (20, 12))
batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": (ids[:, 1] > 30).int()}
losses = []
for _step in range(20):
    outputs = training(**batch)
    losses.append(outputs.loss.item())
    schedule.step()
    training.setOptimizer(optimizer)
training.detachFromDevice()

options = poptorch.Options().deviceIterations(4).autoRoundNumIPUs(True)
options.setExecutionStrategy(poptorch.PipelinedExecution(poptorch.AutoStage.AutoIncrement))
model.eval()
inference = poptorch.inferenceModel(model, options)
logits = inference(input_ids=ids, attention_mask=batch["attention_mask"]).logits
assert logits.shape == (20, 2)
model.save_pretrained(folder)
again = transformers.BertForSequenceClassification.from_pretrained(folder).eval()
with torch.no_grad():
    expected = again(input_ids=ids, attention_mask=batch["attention_mask"]).logits
poptorch.testing.allclose(expected, logits)
print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")
assert losses[-1] < 0.7 * losses[0]

# The first loss is that of the same model in PyTorch: the last micro batch's.
with torch.no_grad():
    last = {name: tensor[-4:] for name, tensor in batch.items()}
    last["labels"] = last["labels"].long()
    assert abs(reference(**last).loss.item() - losses[0]) < 1e-5
training.destroy()
assert type(model) is transformers.BertForSequenceClassification

"""Unmodified models of `transformers` train as in plain PyTorch."""

from __future__ import annotations

import pytest
import torch
import transformers

from tests.poptorch.executor_models import poptorch

SIZES = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
ENCODER = {**SIZES, "intermediate_size": 64, "max_position_embeddings": 64}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
DECODER = {**ENCODER, "num_key_value_heads": 2, "head_dim": 8, "use_cache": False, "pad_token_id": 0}
IMAGES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SEQUENCES = {
    **{f"{part}_layers": 2 for part in ("encoder", "decoder")},
    **{f"{part}_attention_heads": 4 for part in ("encoder", "decoder")},
    **{f"{part}_ffn_dim": 64 for part in ("encoder", "decoder")},
    "vocab_size": 99,
    "d_model": 32,
    "dropout": 0.0,
    "use_cache": False,
}
SPEECH = {
    **SIZES,
    "vocab_size": 32,
    "intermediate_size": 64,
    "conv_dim": (16, 16, 16),
    "conv_stride": (5, 4, 2),
    "conv_kernel": (10, 8, 4),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "apply_spec_augment": False,
    "layerdrop": 0.0,
    "ctc_loss_reduction": "mean",
    **dict.fromkeys(
        ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout"),
        0.0,
    ),
}
T5 = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}

# Class, configuration, inputs.
MODELS = {
    "BertForMaskedLM": ({**ENCODER, **NO_DROPOUT}, "tokens"),
    "RobertaForTokenClassification": ({**ENCODER, **NO_DROPOUT}, "tokens"),
    "DebertaV2ForMaskedLM": ({**ENCODER, **NO_DROPOUT, "relative_attention": True}, "tokens"),
    "GPT2LMHeadModel": (
        {**SIZES, "n_positions": 64, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        "tokens",
    ),
    "LlamaForCausalLM": (DECODER, "tokens"),
    "MixtralForCausalLM": (DECODER, "tokens"),
    "T5ForConditionalGeneration": ({**T5, "dropout_rate": 0.0, "decoder_start_token_id": 0}, "tokens"),
    "BartForConditionalGeneration": ({**SEQUENCES, "max_position_embeddings": 64}, "tokens"),
    "WhisperForConditionalGeneration": (
        {**SEQUENCES, "num_mel_bins": 8, "max_source_positions": 30, "pad_token_id": 0}
        | {"bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3},
        "spectrogram",
    ),
    "ViTForImageClassification": ({**IMAGES, **NO_DROPOUT, "image_size": 16, "patch_size": 4}, "images"),
    "Wav2Vec2ForCTC": (SPEECH, "waveform"),
}
ACCUMULATION, REPLICAS, UPDATES = 2, 2, 2
MICRO_BATCHES = ACCUMULATION * REPLICAS


class Wrapped(torch.nn.Module):
    """Returns the outputs that a training loop needs."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **inputs):
        output = self.model(**inputs)
        return output.loss, output.logits


def _inputs(kind, generator):
    def numbers(*shape, below):
        return torch.randint(5, below, (MICRO_BATCHES, *shape), generator=generator)

    def noise(*shape):
        return torch.randn(MICRO_BATCHES, *shape, generator=generator)

    if kind == "images":
        return {"pixel_values": noise(3, 16, 16), "labels": torch.arange(MICRO_BATCHES) % 2}
    if kind == "waveform":
        return {"input_values": noise(800), "labels": numbers(5, below=30)}
    if kind == "spectrogram":
        return {"input_features": noise(8, 60), "labels": numbers(7, below=90)}
    ids = numbers(10, below=90)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def _made(architecture, sizes):
    torch.manual_seed(0)
    return architecture(architecture.config_class(**sizes)).train()


@pytest.mark.parametrize("name", [name for name in MODELS if hasattr(transformers, name)])
def test_an_architecture_trains_as_in_plain_pytorch(name):
    sizes, kind = MODELS[name]
    if name.startswith("RobertaForToken"):
        sizes = {**sizes, "num_labels": 99}
    architecture = getattr(transformers, name)
    model, plain = (_made(architecture, sizes) for _ in range(2))
    options = poptorch.Options().replicationFactor(REPLICAS).outputMode(poptorch.OutputMode.All)
    options.Training.gradientAccumulation(ACCUMULATION)
    wrapped = Wrapped(model)
    optimizer = poptorch.optim.SGD(wrapped.parameters(), lr=0.1)
    executor = poptorch.trainingModel(wrapped, options, optimizer)
    plain_optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(UPDATES):
        inputs = _inputs(kind, generator)
        losses, _ = executor(**inputs)
        plain_optimizer.zero_grad()
        for index in range(MICRO_BATCHES):
            one = {key: tensor[index : index + 1] for key, tensor in inputs.items()}
            loss = plain(**one).loss
            (loss / MICRO_BATCHES).backward()
            torch.testing.assert_close(losses[index], loss.detach(), rtol=1e-5, atol=1e-5)
        plain_optimizer.step()
    for (key, trained), expected in zip(model.state_dict().items(), plain.state_dict().values()):
        torch.testing.assert_close(trained, expected, rtol=1e-5, atol=1e-5, msg=key)

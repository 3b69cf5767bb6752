"""Folders that hold models: round trips, optimum-graphcore's layout, and every way to be no model."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Callable, Dict

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model import ConversionError, PretrainingModel, SquadModel, from_pretrained, save_pretrained
from tests.model.builders import BERT, GROUPBERT, VARIANTS, batch, perturb


def saved(config: object, folder: Path, head: type = PretrainingModel) -> torch.nn.Module:
    model = head(config)
    perturb(model)
    save_pretrained(model, folder)
    return model


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def change_weights(folder: Path, change: Callable[[Dict[str, Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def change_config(folder: Path, **changes: object) -> None:
    settings = json.loads((folder / "config.json").read_text())
    settings.update(changes)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))


@pytest.mark.parametrize(("head", "kind"), [("pretraining", PretrainingModel), ("squad", SquadModel)])
@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_saved_comes_back(name: str, head: str, kind: type, tmp_path: Path) -> None:
    config = replace(VARIANTS[name], hidden_dropout=0.25, attention_dropout=0.125)
    if config.is_bert:  # whose file has no place for what it doesn't use
        config = replace(config, conv_group_size=16)
    model = saved(config, tmp_path / "new" / "folder", kind)
    again = from_pretrained(tmp_path / "new" / "folder", head=head)
    assert again.config == config
    assert same_weights(model, again)


def test_dropouts_may_be_replaced(tmp_path: Path) -> None:
    saved(GROUPBERT, tmp_path)
    model = from_pretrained(tmp_path, hidden_dropout=0.1, attention_dropout=0.2)
    assert model.config == replace(GROUPBERT, hidden_dropout=0.1, attention_dropout=0.2)
    with pytest.raises(ConversionError, match=r"hidden_dropout is 1\.5"):
        from_pretrained(tmp_path, hidden_dropout=1.5)


@pytest.mark.parametrize("config", [BERT, GROUPBERT, VARIANTS["pre-plain-grouped"]])
def test_a_pretrained_encoder_under_a_fresh_squad_head(config: object, tmp_path: Path) -> None:
    model = saved(config, tmp_path)
    squad = from_pretrained(tmp_path, head="squad", seed=5)
    assert same_weights(squad.encoder, model.encoder)
    assert same_weights(squad.span, SquadModel(config, seed=5).span)


def test_half_precision_is_kept_in_the_file_and_widened_when_read(tmp_path: Path) -> None:
    model = PretrainingModel(GROUPBERT, seed=1).half()
    save_pretrained(model, tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    again = from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    assert same_weights(again.half(), model)


def optimum_names(layers: int) -> set:
    """optimum-graphcore's state dictionary of a GroupBERT, without the tied copies that a file may lack."""
    modules = {
        "bert.embeddings.LayerNorm",
        "bert.encoder.LayerNorm",
        "bert.pooler.dense",
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        "cls.seq_relationship",
    }
    in_a_layer = [f"convolution.{part}" for part in ("prenorm", "glu", "groupconv", "conv_norm")]
    in_a_layer += ["convolution.output_projection", "attention.LayerNorm", "attention.output.dense"]
    in_a_layer += [f"attention.self.{part}" for part in ("query", "key", "value")]
    for which in ("first", "second"):
        in_a_layer += [f"intermediate_{which}.{part}" for part in ("LayerNorm", "dense")]
        in_a_layer += [f"output_{which}.{part}" for part in ("grouped_matmul", "dense_output_projection")]
    modules |= {f"bert.encoder.layer.{n}.{module}" for n in range(layers) for module in in_a_layer}
    names = {f"{module}.{leaf}" for module in modules for leaf in ("weight", "bias")}
    kinds = ("word", "position", "token_type")
    return names | {f"bert.embeddings.{kind}_embeddings.weight" for kind in kinds} | {"cls.predictions.bias"}


def test_a_groupbert_file_is_optimum_graphcores(tmp_path: Path) -> None:
    model = saved(GROUPBERT, tmp_path)
    file = load_file(tmp_path / "model.safetensors")
    assert set(file) == optimum_names(GROUPBERT.num_layers)
    h = GROUPBERT.hidden_size
    layer = "bert.encoder.layer.1"
    assert file[f"{layer}.convolution.glu.weight"].shape == (2 * h, h)
    assert file[f"{layer}.convolution.groupconv.weight"].shape == (h, 8, 7)
    assert file[f"{layer}.output_second.grouped_matmul.weight"].shape == (h, h, 1)
    # Their gated linear unit splits its outputs in two: the first half gates the second.
    x = torch.randn(4, h)
    gates, values = torch.nn.functional.linear(
        x, file[f"{layer}.convolution.glu.weight"], file[f"{layer}.convolution.glu.bias"]
    ).chunk(2, dim=-1)
    convolution = model.encoder.layers[1].convolution.body
    torch.testing.assert_close(
        values * gates.sigmoid(), convolution.values(x) * convolution.gates(x).sigmoid()
    )


def test_optimum_graphcores_folder_is_read(tmp_path: Path) -> None:
    """With their configuration, which names none of our choices, and the tied copies of a .bin file."""
    model = saved(GROUPBERT, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    weights["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"].clone()
    weights["cls.predictions.decoder.bias"] = weights["cls.predictions.bias"].clone()
    weights["bert.embeddings.position_ids"] = torch.arange(24).unsqueeze(0)
    torch.save(weights, tmp_path / "pytorch_model.bin")
    change_config(tmp_path, norm=None, convolution=None, feed_forward=None, architectures=None)
    again = from_pretrained(tmp_path)
    assert again.config == GROUPBERT
    assert same_weights(model, again)


def test_names_as_old_as_bert(tmp_path: Path) -> None:
    model = saved(BERT, tmp_path)

    def age(weights: Dict[str, Tensor]) -> None:
        for name in list(weights):
            if "LayerNorm" in name:
                old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                    "LayerNorm.bias", "LayerNorm.beta"
                )
                weights[old] = weights.pop(name)

    change_weights(tmp_path, age)
    change_config(tmp_path, layer_norm_eps=None, type_vocab_size=None)
    again = from_pretrained(tmp_path)
    assert same_weights(model, again)
    assert again.config.layer_norm_eps == 1e-12  # what transformers takes where nothing is said


@pytest.mark.parametrize("config", [BERT, GROUPBERT])
def test_a_bare_encoder_is_enough_for_squad_and_not_for_pretraining(config: object, tmp_path: Path) -> None:
    model = saved(config, tmp_path)

    def strip(weights: Dict[str, Tensor]) -> None:
        for name in list(weights):
            tensor = weights.pop(name)
            if name.startswith("bert."):
                weights[name[len("bert.") :]] = tensor

    change_weights(tmp_path, strip)
    assert same_weights(from_pretrained(tmp_path, head="squad").encoder, model.encoder)
    with pytest.raises(ConversionError, match=r"missing heads\.masked_lm\.bias"):
        from_pretrained(tmp_path)


def test_missing_unknown_and_mismatching_weights_are_named(tmp_path: Path) -> None:
    saved(GROUPBERT, tmp_path)

    def damage(weights: Dict[str, Tensor]) -> None:
        del weights["bert.pooler.dense.bias"]
        weights["classifier.weight"] = torch.zeros(3, 32)
        weights["bert.encoder.LayerNorm.weight"] = torch.zeros(31)

    change_weights(tmp_path, damage)
    with pytest.raises(ConversionError) as caught:
        from_pretrained(tmp_path)
    text = str(caught.value)
    assert "missing heads.pooler.bias" in text
    assert "unknown classifier.weight" in text
    assert "encoder.norm.weight (is (31,), must be (32,))" in text
    assert str(tmp_path) in text


def test_no_more_than_the_first_few_names(tmp_path: Path) -> None:
    saved(GROUPBERT, tmp_path)

    def lose_the_layers(weights: dict) -> None:
        for name in [name for name in weights if ".encoder." in name]:
            weights.pop(name)

    change_weights(tmp_path, lose_the_layers)
    with pytest.raises(ConversionError, match=r"and \d+ more") as caught:
        from_pretrained(tmp_path, head="squad")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("change", [{"num_hidden_layers": 3}, {"num_hidden_layers": 1}, {"vocab_size": 97}])
def test_weights_of_another_configuration(change: dict, tmp_path: Path) -> None:
    saved(BERT, tmp_path)
    change_config(tmp_path, **change)
    with pytest.raises(ConversionError, match="don't match"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "roberta"}, "'roberta'"),
        ({"hidden_size": None}, "has no hidden_size"),
        ({"hidden_size": "32"}, "hidden_size is '32'"),
        ({"num_attention_heads": 5}, "num_heads 5"),
        ({"intermediate_size": 100}, "intermediate_size is 100"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"norm": "sideways"}, "norm is 'sideways'"),
    ],
)
def test_settings_that_no_model_here_has(change: dict, words: str, tmp_path: Path) -> None:
    saved(GROUPBERT, tmp_path)
    change_config(tmp_path, **change)
    with pytest.raises(ConversionError) as caught:
        from_pretrained(tmp_path)
    assert words in str(caught.value) and "config.json" in str(caught.value)


def test_an_untied_vocabulary_projection_is_refused(tmp_path: Path) -> None:
    saved(BERT, tmp_path)
    change_weights(tmp_path, lambda w: w.update({"cls.predictions.decoder.weight": torch.ones(96, 32)}))
    with pytest.raises(ConversionError, match="isn't tied"):
        from_pretrained(tmp_path)


def test_a_vocabulary_of_another_model_is_refused(tmp_path: Path) -> None:
    saved(BERT, tmp_path)
    (tmp_path / "vocab.txt").write_text("token\n" * 96)
    from_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("token\n" * 98)
    with pytest.raises(ConversionError, match="98 entries, 2 more"):
        from_pretrained(tmp_path)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"config\.json"):
        from_pretrained(tmp_path / "nowhere")
    saved(BERT, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConversionError, match="neither"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1, 2]", "\udcff", ""])
def test_a_malformed_configuration(text: str, tmp_path: Path) -> None:
    saved(BERT, tmp_path)
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConversionError, match=r"config\.json"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_truncated_file(file: str, keep: int, tmp_path: Path) -> None:
    model = saved(BERT, tmp_path)
    (tmp_path / "model.safetensors").unlink() if file.endswith("bin") else None
    if file.endswith("bin"):
        torch.save(model.state_dict(), tmp_path / file)
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(content[:keep])
    with pytest.raises(ConversionError, match="damaged"):
        from_pretrained(tmp_path)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("write", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_a_pickle_that_runs_code_is_refused_and_not_run(write: Callable, tmp_path: Path) -> None:
    saved(BERT, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    write({"weight": Malicious(tmp_path / "hacked")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConversionError, match="could execute code"):
        from_pretrained(tmp_path)
    assert not (tmp_path / "hacked").exists()


def test_a_pickle_of_something_else_is_refused(tmp_path: Path) -> None:
    saved(BERT, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    state = {"weight": torch.zeros(1)}
    endless: dict[str, object] = {"model": {"epoch": 3}}
    endless["state_dict"] = endless
    for content, found in (
        ({"net": state, "epoch": 3}, "holds a dict of net, epoch: save"),
        ({"model": state, "state_dict": state}, "holds a dict of model, state_dict"),
        (endless, "holds a dict of model, state_dict"),
        ([torch.zeros(1)], "holds a list: save"),
    ):
        torch.save(content, tmp_path / "pytorch_model.bin")
        with pytest.raises(ConversionError, match=f"dictionary of tensors, but {found}"):
            from_pretrained(tmp_path)


@pytest.mark.parametrize("key", ["state_dict", "model", "module", "model_state_dict"])
def test_a_state_beside_an_optimizers_is_read(key: str, tmp_path: Path) -> None:
    saved(BERT, tmp_path)
    expected = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    state = {f"module.{name}": tensor for name, tensor in expected.items()}
    torch.save({key: state, "optimizer": {"param_groups": []}, "epoch": 3}, tmp_path / "pytorch_model.bin")
    found = from_pretrained(tmp_path)
    save_pretrained(found, tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_an_unknown_head(tmp_path: Path) -> None:
    saved(BERT, tmp_path)
    with pytest.raises(ConversionError, match="'ner', but must be one of pretraining, squad, glue"):
        from_pretrained(tmp_path, head="ner")


def test_logits_survive(tmp_path: Path) -> None:
    model = saved(GROUPBERT, tmp_path)
    inputs = batch(GROUPBERT)
    again = from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model(*inputs), again(*inputs)))


def test_weights_of_an_ipu_are_read(tmp_path: Path) -> None:
    """config.json names the form of GELU that they were trained with; the device computes its own form."""
    save_pretrained(PretrainingModel(BERT, seed=1), tmp_path, tanh_gelu=True)
    assert json.loads((tmp_path / "config.json").read_text())["hidden_act"] == "gelu_pytorch_tanh"
    assert from_pretrained(tmp_path).config == BERT
    change_config(tmp_path, hidden_act="gelu_new")
    assert from_pretrained(tmp_path).config == BERT


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a": ' * 100_000, '{"hidden_size": ' + "9" * 5000 + "}", " " * (17 << 20), "\xff"],
)
def test_a_configuration_that_no_program_wrote_is_an_error_of_ours(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ConversionError, match=r"config\.json"):
        from_pretrained(tmp_path, head="squad")


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards_are_read(suffix: str, tmp_path: Path) -> None:
    model = saved(BERT, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    places = {}
    for number in (1, 2, 3):
        name = f"{stem}-0000{number}-of-00003{suffix}"
        shard = {key: weights[key] for key in sorted(weights)[number - 1 :: 3]}
        places.update(dict.fromkeys(shard, name))
        if suffix == ".bin":
            torch.save(shard, tmp_path / name)
        else:
            save_file(shard, tmp_path / name)
    index = tmp_path / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert same_weights(model, from_pretrained(tmp_path))

    index.write_text(json.dumps({"weight_map": {**places, "more": name}}))
    with pytest.raises(ConversionError, match="names 1 weights that its shards lack, more first"):
        from_pretrained(tmp_path)
    for damage in ({}, {"weight_map": []}, {"weight_map": {"a": "../x"}}, {"weight_map": {"a": 3}}):
        index.write_text(json.dumps(damage))
        with pytest.raises(ConversionError, match="has no weight_map"):
            from_pretrained(tmp_path)
    index.write_text(json.dumps({"weight_map": places}))
    (tmp_path / name).unlink()
    with pytest.raises(ConversionError, match=f"lacks {name}, one of 3 shards"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("config", [BERT, GROUPBERT, VARIANTS["pre-plain-grouped"]])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_the_prefix_of_a_wrapper_is_taken_off(prefix: str, config: object, tmp_path: Path) -> None:
    model = saved(config, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({prefix + name: tensor for name, tensor in weights.items()}, tmp_path / "model.safetensors")
    assert same_weights(model, from_pretrained(tmp_path))


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("config", [BERT, GROUPBERT])
def test_the_tied_copy_of_the_embeddings_is_enough(config: object, prefix: str, tmp_path: Path) -> None:
    model = saved(config, tmp_path)

    def move(weights: Dict[str, Tensor]) -> None:
        copy = weights.pop("bert.embeddings.word_embeddings.weight")
        weights["cls.predictions.decoder.weight"] = copy
        weights["cls.predictions.decoder.bias"] = weights.pop("cls.predictions.bias")
        for name in list(weights):
            weights[prefix + name] = weights.pop(name)

    change_weights(tmp_path, move)
    assert same_weights(model, from_pretrained(tmp_path))


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    saved(BERT, tmp_path)
    name = "bert.pooler.dense.weight"
    change_weights(tmp_path, lambda weights: weights.update({name: weights[name].to(torch.int8)}))
    with pytest.raises(
        ConversionError, match=r"quantised, or no weights heads\.pooler\.weight \(torch\.int8\)"
    ):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("file", "library"),
    [("tf_model.h5", "TensorFlow"), ("flax_model.msgpack", "Flax"), ("a.ckpt", "Lightning")],
)
def test_weights_of_another_library_are_named(file: str, library: str, tmp_path: Path) -> None:
    saved(BERT, tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / file)
    with pytest.raises(ConversionError, match=f"It has {file} .*{library}.*: load it with the library"):
        from_pretrained(tmp_path)

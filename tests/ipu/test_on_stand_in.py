"""`--device ipu` over the stand-in: the calls of the compiled core in PopTorch's order, and exact resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

import model as models
from data.tokenizer import SPECIAL_TOKENS, Tokenizer
from model import ModelConfig, PretrainingModel

from .conftest import ROOT

pytestmark = pytest.mark.slow

SHAPE = {"norm": "pre", "convolution": True, "feed_forward": "grouped_projected"}
API = Path(__file__).resolve().parents[1] / "poptorch" / "poptorch_api.json"
STEPS = ("--training-steps", 4, "--checkpoint-steps", 2, "--eval-steps", 2, "--eval-batches", 5)


def test_the_stand_in_has_poptorchs_signatures(stand_in):
    """What it offers has PopTorch's name, and takes PopTorch's arguments in PopTorch's order."""
    stand_in.code(
        f"""
        import inspect, json, pathlib
        import poptorch
        api = json.loads(pathlib.Path({str(API)!r}).read_text())
        def names(parameters):
            return [entry[0].replace("kw ", "").lstrip("*") for entry in parameters]
        def check(thing, parameters, where):
            given = list(inspect.signature(thing).parameters)
            assert given == names(parameters), (where, given, names(parameters))
        def check_class(kind, entry, where):
            if "init" in entry and "options" in names(entry["init"]):
                check(kind.__init__, entry["init"], where)
            for name, method in vars(kind).items():
                if inspect.isfunction(method) and entry["methods"].get(name, "property") != "property":
                    check(method, entry["methods"][name], f"{{where}}.{{name}}")
        for name, thing in vars(poptorch).items():
            entry = api["poptorch"].get(name)
            if entry is None:
                assert name.startswith("__") or name in (
                    "os data executor ops optim options poptorch_core".split()), name
            elif "call" in entry:
                check(thing, entry["call"], name)
            elif "members" in entry:
                assert {{m.name: m.value for m in thing}} == entry["members"], name
            else:
                check_class(thing, entry, name)
        options = poptorch.Options()
        for name, entry in api["options_namespaces"].items():
            if name in options.parts:
                check_class(type(getattr(options, name)), entry, name)
        for name, entry in api["poptorch.optim"].items():
            kind = getattr(poptorch.optim, name, None)
            if kind is not None and name not in ("Optimizer", "VariableAttributes"):
                ours = {{*kind.attributes, *kind.switches, *kind.types}}
                assert ours <= set(names(entry["init"])), (name, ours)
        """
    )


FIRST = """inference compile, inference attach, inference write weights, inference seed, inference run,
    inference run, inference read random state, inference detach, training compile, training attach,
    training write weights, training update optimizer"""
RUNS = """training run, training update optimizer, training run, training read weights,
    training read optimizer state"""
EVALUATION = """training read random state, training detach, inference attach, inference write weights,
    inference write random state, inference run, inference run, inference read random state,
    inference detach"""
AGAIN = """training attach, training write weights, training update optimizer,
    training write optimizer state, training write random state"""
FIRST_EVALUATION = EVALUATION.replace("inference attach", "inference compile, inference attach").replace(
    "inference write random state", "inference seed"
)


def words(*parts):
    return [" ".join(call.split()) for part in parts for call in part.split(",")]


def assert_same(one, other, step):
    for name in ("model.safetensors", "optimizer.safetensors"):
        left, right = (
            load_file(str(run / "checkpoints" / f"step_{step:08d}" / name)) for run in (one, other)
        )
        assert left.keys() == right.keys()
        assert all(left[key].numpy().tobytes() == right[key].numpy().tobytes() for key in left), name


def test_a_run_makes_poptorchs_calls_in_order_and_goes_on_to_the_bit(stand_in, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    ended = stand_in.pretraining(whole, *STEPS)
    assert ended.status == 0, ended.err
    assert ended.out.startswith("device: ipu (Graphcore's PopTorch, poptorch 3.4.0); requested")
    inference, training = ended.of("compile")
    assert not inference["options"]["enableStochasticRounding"], "two evaluations of the same weights differ"
    assert training["options"]["enableStochasticRounding"]
    assert {"betas", "weight_decay"} <= set(training["constants"]), "streams, not constants"
    assert ended.names() == words(FIRST, RUNS, EVALUATION, AGAIN, RUNS, EVALUATION)

    # An IPU computes GELU's tanh form, whatever the model asks for: the weights were trained with it.
    saved = json.loads((whole / "checkpoints" / "step_00000004" / "config.json").read_text())
    assert saved["hidden_act"] == "gelu_pytorch_tanh"

    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "step_00000004")
    resumed = stand_in.pretraining(parts, *STEPS, "--resume")
    assert resumed.status == 0, resumed.err
    assert resumed.names() == words("training compile", AGAIN, RUNS, FIRST_EVALUATION)
    assert_same(whole, parts, 4)


def test_every_recipes_program_is_accepted(stand_in):
    """Options, optimiser, blocks, loss: traced on the meta device, as the core would get them. Recipes of
    the same model and placement are traced once."""
    ended = stand_in.code(
        """
        import torch, poptorch
        import config as configuration, ipu, training
        from config import recipes
        from ipu.options import DevicePlan, inference_options, training_options
        device = ipu.select_device("ipu")
        traced = set()
        for name in configuration.names():
            config = configuration.load(name)
            optimizer_plan, plan = config.section(training.OptimizerPlan), config.section(DevicePlan)
            options = training_options(plan)
            for each, output_mode in ((options, 1), (inference_options(plan), 2)):
                poptorch.poptorch_core.check_options({**each.toDict(), "output_mode": output_mode})
            poptorch.poptorch_core.record("recipe", name=name)
            program = repr((config.model_config(), config.task, config.layers_per_ipu, config.optimizer))
            if program in traced:
                continue
            traced.add(program)
            with torch.device("meta"):
                model = config.task_model(config.model_config())
            training.place(model, config, config.layers_per_ipu, device=device)
            optimizer = training.build_optimizer(model, optimizer_plan)
            executor = poptorch.trainingModel(model, options, optimizer)
            shapes = config.input_shapes(config.samples_per_call)
            batch = [torch.empty(shape, dtype=torch.int32, device="meta") for shape in shapes]
            executor.compile(*batch)
            executor(*batch)
            executor.destroy()
        print(len(traced))
        """
    )
    assert len(ended.of("recipe")) > 20 and len(ended.of("run")) == int(ended.out) > 20


MISTAKES = {
    "options.deviceIteration(4)": "Invalid attribute deviceIteration",
    "options.deviceIterations(4.0)": "Unexpected type",
    "options.Training.gradientAccumulation('4')": "Unexpected type",
    "train.randomSeed(1)": "Can't modify frozen Options",
    "options._Popart.set('enableStochasticRoundings', True); core(options)": "Unknown bool option",
    "options._Popart.set('subgraphCopyingStrategy', '1'); core(options)": "is of type str, not int",
    "poptorch.optim.LAMB([weight], lr=1.0, max_grad_norm=1.0)": "unexpected arguments",
    "poptorch.optim.AdamW([weight], lr=1.0).variable_attrs.markAsConstant('beta')": "Unknown attribute beta",
    "executor.rng_state": "has not been compiled",
    "executor.compile(torch.zeros(4, 2)); executor.rng_state = [1.5, 0, 0]": "list of integers",
    "executor(torch.zeros(3, 2))": "Shape mismatch",
    "executor.detachFromDevice(); executor.detachFromDevice()": "Device is not attached",
}


def test_the_stand_in_refuses_what_poptorch_refuses(stand_in):
    ended = stand_in.code(
        f"""
        import torch, poptorch
        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = torch.nn.Linear(2, 2)
            def forward(self, x):
                return poptorch.identity_loss(self.linear(x).sum(), reduction="none")
        def core(options):
            poptorch.poptorch_core.check_options({{**options.toDict(), "output_mode": 1}})
        model, train = Model(), poptorch.Options()
        weight = model.linear.weight
        executor = poptorch.trainingModel(model, train, poptorch.optim.SGD(model.parameters(), lr=0.1))
        for mistake in {list(MISTAKES)!r}:
            options = poptorch.Options().outputMode(poptorch.OutputMode.Sum)
            try:
                exec(mistake)
                print("accepted")
            except Exception as error:
                print(repr(str(error)))
        """
    )
    for said, (mistake, words) in zip(ended.out.splitlines(), MISTAKES.items(), strict=True):
        assert words in said, mistake


def test_fine_tuning_and_answers(stand_in, tmp_path):
    context = "json reads and writes text."
    answers = [{"text": "text", "answer_start": context.index("text")}]
    asked = [{"id": str(n), "question": "What does json read?", "answers": answers} for n in range(9)]
    questions = tmp_path / "questions.json"
    questions.write_text(json.dumps({"data": [{"paragraphs": [{"context": context, "qas": asked}]}]}))
    config = ModelConfig(vocab_size=40, hidden_size=32, num_layers=2, num_heads=2, **SHAPE)
    models.save_pretrained(PretrainingModel(config, seed=1), tmp_path / "run")
    vocabulary = "what does json read reads and writes text . ?".split()
    Tokenizer([*SPECIAL_TOKENS, *vocabulary]).save(tmp_path / "run")
    words = ["--config", "test_squad", "--device", "ipu", "--output", tmp_path / "squad"]
    words += ["--checkpoint", tmp_path / "run", "--training-steps", 2, "--eval-batches", 1]
    words += ["--train-data", questions, "--validation-data", questions, "--cache-folder", tmp_path]
    ended = stand_in.end(stand_in.start([ROOT / "run_squad.py", *words]))
    assert ended.status == 0, ended.err
    compiled = [call["kind"] for call in ended.of("compile")]
    assert compiled == ["inference", "training", "inference"]

"""A training from its first or resumed update to its last, for all tasks."""

from __future__ import annotations

import multiprocessing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional

import torch

import data
import data.workers
import ipu
import model as models
from ipu.options import DevicePlan, training_options

from .checkpoints import (
    Checkpoint,
    checkpoint_folder,
    require_keys,
    resolve_weights_folder,
    save_checkpoint,
)
from .compilation import computes_as_ipu, place
from .errors import TrainingError, is_worker_death
from .evaluation import Evaluator
from .folder import write_atomically
from .loading import training_batches
from .loop import LoopPlan, Progress, refuse_bad_weights, train
from .metrics import Task
from .metrics_file import plain
from .model_card import CARD_FILE, model_card
from .optimizer import OptimizerPlan, Schedule, build_optimizer
from .optimizer_state import check_state, state_at_rate
from .report import NoReporter, Reporter
from .rotation import Rotation, move_damaged_aside, sweep
from .signals import StopRequest
from .start import check_weights_folder, checkpoint_to_resume, progress_of, random_state

if TYPE_CHECKING:
    from config import Config


@dataclass(frozen=True)
class Start:
    """The source of a run's weights: the checkpoint it resumes, a folder of weights, or neither.

    `config` is the run's configuration as given; a resumed run must have the same one.
    """

    resumed: Optional[Checkpoint]
    weights: Optional[Path]
    config: Dict[str, Any]


@dataclass(frozen=True)
class Job:
    """Everything that a task contributes to a training.

    `identity` identifies the data, `state` is added to checkpoints. `evaluator` creates the evaluator that
    belongs to a training executor; the last one it created belongs to the trained weights.
    """

    task: Task
    model: models.TaskModel
    examples: data.SampleDataset
    identity: str
    tokenizer: Optional[data.Tokenizer]
    evaluator: Callable[[Any], Evaluator]
    state: Dict[str, Any]


def find_start(
    config: Config,
    output: Path,
    *,
    resume: bool,
    checkpoint: Optional[Path],
    instances: ipu.Instances = ipu.ALONE,
) -> Start:
    """Finds a run's initial weights, checks them against the configuration and writes resolved.yml.

    `checkpoint` is a folder of weights for a new run; `resume` continues the newest checkpoint in `output`.
    Raises CheckpointError and TrainingError before anything is written.
    """
    if instances.is_first:
        sweep(output)
    instances.wait()
    resumed = checkpoint_to_resume(output, config.to_dict(), resume=resume)
    weights = None if checkpoint is None else resolve_weights_folder(checkpoint)
    if resumed is not None:
        weights = resumed.folder
        require_keys(resumed.folder, resumed.state, ("samples", "data", "host_threads"))
    if weights is not None:
        print(f"weights from {weights}", flush=True)
        check_weights_folder(weights, config.model_config())
    instances.refuse_difference("the checkpoint to start from", str(weights and weights.resolve()))
    if instances.is_first:
        if resumed is not None:
            move_damaged_aside(output, resumed)
        write_atomically(output / "resolved.yml", config.to_yaml())
    return Start(resumed, weights, config.to_dict())


def fit(
    config: Config,
    job: Job,
    start: Start,
    *,
    device: ipu.DeviceChoice,
    output: Path,
    arguments: List[str],
    stop: StopRequest,
    instances: ipu.Instances = ipu.ALONE,
) -> Progress:
    """Trains `job.model` to `config.training_steps` or until `stop`; ends with a checkpoint in `output`.

    `arguments` are those of the command line. With several instances, each trains its share of the replicas
    on its share of the data, and the first writes. Raises the errors of `train` and `save_checkpoint`, and
    TrainingError if a DataLoader worker dies or shared memory is too small for the workers.
    """
    loop, resumed = config.section(LoopPlan), start.resumed
    place(job.model, config, config.layers_per_ipu, device=device)
    optimizer = build_optimizer(job.model, config.section(OptimizerPlan))
    instances.refuse_difference("the prepared data", job.identity)
    options = training_options(config.section(DevicePlan), instances)
    executor = ipu.poptorch.trainingModel(job.model, options, optimizer)
    begin, start_sample = progress_of(resumed, loop.samples_per_call), 0
    if resumed is not None:
        start_sample = resumed.state["samples"]
        # The number of threads changes the last bits of the simulator's sums.
        torch.set_num_threads(resumed.state["host_threads"])
        rate = config.section(Schedule).at(begin.step)
        saved = resumed.optimizer_state()
        if device.name == "simulator":  # the names on IPUs are PopART's
            as_ipu = computes_as_ipu(config, device)
            plan = config.section(OptimizerPlan)
            check_state(resumed.folder, saved, job.model, plan, begin.step, as_ipu=as_ipu)
        saved_state = state_at_rate(saved, rate, config.loss_scaling)
        optimizer.load_state_dict({**optimizer.state_dict(), **saved_state})
    elif config.host_threads is not None:
        torch.set_num_threads(config.host_threads)
    if device.name == "simulator" and instances.is_first:
        print(f"host threads: {torch.get_num_threads()}{ipu.waiting_note()}", flush=True)
    evaluate = job.evaluator(executor)
    batches = training_batches(
        config,
        options,
        job.examples,
        start_sample=start_sample,
        calls=-(-(config.training_steps - begin.step) // loop.device_iterations),
        device=device,
        instances=instances,
    )

    rotation = Rotation(output, config.checkpoints_to_keep)
    if resumed is not None and instances.is_first:
        rotation.remove_old()

    def save_model(folder: Path, now: Progress) -> None:
        models.save_pretrained(job.model, folder, tanh_gelu=computes_as_ipu(config, device))
        if job.tokenizer is not None:
            job.tokenizer.save(folder)
        card = model_card(config, job.model, now.record, step=now.step, device=device, arguments=arguments)
        (folder / CARD_FILE).write_text(card, encoding="utf-8")

    def save(now: Progress) -> Path:
        refuse_bad_weights(job.model, now.step)
        # All instances fetch weights, optimiser state and random state: a transfer of one alone can hang, as
        # their devices synchronise. The first one writes.
        optimizer_state = optimizer.state_dict()
        rng_states = instances.gather_values(executor.rng_state)
        if not instances.is_first:
            instances.wait()
            return checkpoint_folder(output, now.step)
        state: Dict[str, Any] = {
            "progress": {
                "record": plain(now.record),
                "evaluation_due": now.evaluation_due,
                "speed": asdict(now.speed),
            },
            "samples": now.step * loop.global_batch_size,
            "data": job.identity,
            "rng_state": rng_states[0],
            "other_rng_states": rng_states[1:],
            "host_threads": torch.get_num_threads(),
            **job.state,
            "config": start.config,
            "arguments": arguments,
            "poptorch": ipu.poptorch.__version__,
            "metrics": reporter.sync(),
        }
        folder = save_checkpoint(
            output,
            now.step,
            save_model=lambda folder: save_model(folder, now),
            optimizer_state=optimizer_state,
            state=state,
        )
        rotation.saved(folder)
        instances.wait()
        return folder

    reporter = (Reporter if instances.is_first else NoReporter)(
        output,
        task=job.task,
        start_step=begin.step,
        keep_until=begin.step - 1 if begin.evaluation_due else begin.step,
        earlier=resumed.state.get("metrics") if resumed else None,  # earlier versions have none
        total_steps=config.training_steps,
        log_steps=config.log_steps,
        progress_bar=config.progress_bar,
        trackers=config.trackers,
        wandb_project=config.wandb_project,
        config=config.to_dict(),
    )
    others = data.workers.process_numbers()
    try:
        with stop.deferred():
            return train(
                loop,
                begin,
                task=job.task,
                rng_state=random_state(resumed, device, instances),
                executor=executor,
                optimizer=optimizer,
                schedule=config.section(Schedule),
                batches=batches,
                evaluate=evaluate,
                save=save,
                reporter=reporter,
                stop=stop,
                instances=instances,
            )
    except BaseException as error:
        # An error holds the frames that hold the loader, and Python would wait for its workers.
        data.workers.end(data.workers.started_since(others))
        if not isinstance(error, RuntimeError) or not is_worker_death(error):
            raise
        raise TrainingError(
            f"a DataLoader worker died ({str(error).splitlines()[0]}), probably killed by the out-of-memory "
            "killer. Lower --dataloader-workers and rerun with --resume"
        ) from error
    finally:
        reporter.close()
        batches.terminate()
        # SIGTERM, with which loaders and Python end workers, doesn't reach a stopped one.
        data.workers.end(filter(data.workers.is_stopped, multiprocessing.active_children()))
        executor.destroy()

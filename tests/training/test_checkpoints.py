"""Checkpoints are written atomically, found by number, verified, rotated; folders are held by one run."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from training import CheckpointError, TrainingError, hold_folder, resolve_weights_folder, save_checkpoint
from training.checkpoints import newest_checkpoint, read_checkpoint
from training.folder import step_folders
from training.rotation import Rotation, move_damaged_aside, sweep
from training.start import checkpoint_to_resume, resuming_arguments

ROOT = Path(__file__).resolve().parents[2]


def save(output, step, *, config=None, state=None):
    def save_model(folder):
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)

    return save_checkpoint(
        output,
        step,
        save_model=save_model,
        optimizer_state=state or {"ipu_state": {"Accl1___w": torch.arange(3.0)}, "ipu_param": {"lr": 0.5}},
        state={
            "config": config or {"seed": 1},
            "rng_state": [1, 2],
            "progress": {"record": {"step": step}, "evaluation_due": False},
        },
    )


def test_optimizer_state_comes_back_bit_for_bit(tmp_path):
    moments = torch.randn(1000) * torch.tensor(2.0) ** torch.randint(-120, 120, (1000,))
    state = {
        "ipu_state": {"Accl1___a/b.weight": moments, "Step___x": torch.tensor(7.0)},
        "ipu_param": {"lr": 0.1},
    }
    loaded = read_checkpoint(save(tmp_path, 3, state=state)).optimizer_state()
    assert torch.equal(loaded["ipu_state"]["Accl1___a/b.weight"], moments)
    assert loaded["ipu_state"]["Step___x"] == 7
    assert loaded["ipu_param"]["lr"] == torch.tensor(0.1)


def test_the_newest_is_found_by_number_and_old_ones_rotate(tmp_path):
    rotation = Rotation(tmp_path, 3)
    for step in (900, 1000, 2000, 123456789):
        rotation.saved(save(tmp_path, step))
    assert [int(folder.name[5:]) for folder in step_folders(tmp_path)] == [1000, 2000, 123456789]
    assert newest_checkpoint(tmp_path)[0].step == 123456789


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "config.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_checkpoint_is_passed_over_with_the_reason(tmp_path, name, damage):
    save(tmp_path, 1)
    path = save(tmp_path, 2) / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(content[:-1])
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match=name):
        read_checkpoint(path.parent)
    good, problems = newest_checkpoint(tmp_path)
    assert good.step == 1
    assert len(problems) == 1 and name in problems[0]


@pytest.mark.parametrize("text", ["", "{", '{"step": 2}', "[]", "3"])
def test_a_damaged_state_file_is_a_clear_error(tmp_path, text):
    folder = save(tmp_path, 2)
    (folder / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"state\.json"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("step", "x", 'step is "x", not of type int'),
        ("progress", [], r"progress is \[\], not of type dict"),
        ("progress", {}, "progress lacks record"),
        (
            "progress",
            {"record": {}, "evaluation_due": False, "speed": {"calls": "1"}},
            "the speed in progress is",
        ),
        ("config", [1], "config is"),
        ("rng_state", "abc", "rng_state is"),
        ("other_rng_states", [[1, 2], 3], "other_rng_states is"),
        ("sha256", [], "sha256 is"),
        ("samples", True, "samples is true"),
    ],
)
def test_a_state_of_the_wrong_kind_is_a_clear_error(tmp_path, key, value, words):
    path = save(tmp_path, 1) / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(CheckpointError, match=words):
        read_checkpoint(path.parent)


def test_another_format_or_missing_checksums_are_a_clear_error(tmp_path):
    path = save(tmp_path, 2) / "state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps({**state, "format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        read_checkpoint(path.parent)
    path.write_text(json.dumps({**state, "sha256": {}}))
    with pytest.raises(CheckpointError, match="no checksum of"):
        read_checkpoint(path.parent)


def test_a_write_that_fails_leaves_the_older_checkpoint_and_no_debris(tmp_path):
    save(tmp_path, 1)

    def full_disk(folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left"):
        save_checkpoint(tmp_path, 2, save_model=full_disk, optimizer_state={}, state={})
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]


@pytest.mark.slow
def test_a_killed_writer_leaves_nothing_that_counts(tmp_path):
    save(tmp_path, 1)
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from training import save_checkpoint
def die(folder):
    (folder / "model.safetensors").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
save_checkpoint(Path({str(tmp_path)!r}), 2, save_model=die, optimizer_state={{}}, state={{}})
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=120).returncode == -9
    assert newest_checkpoint(tmp_path)[0].step == 1
    sweep(tmp_path)
    save(tmp_path, 3)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step_00000001",
        "step_00000003",
    ]


def names(output):
    return sorted(path.name for path in (output / "checkpoints").iterdir())


def test_rotation_counts_good_checkpoints_only(tmp_path, capsys):
    """A damaged checkpoint newer than the one that is resumed must not push out the good ones."""
    save(tmp_path, 4)
    with (save(tmp_path, 8) / "model.safetensors").open("ab") as file:
        file.write(b"x")
    newest, problems = newest_checkpoint(tmp_path)
    assert newest.step == 4 and "model.safetensors is corrupt" in problems[0]
    move_damaged_aside(tmp_path, newest)
    Rotation(tmp_path, 1).saved(save(tmp_path, 6))
    assert names(tmp_path) == ["damaged_step_00000008", "step_00000006"]
    assert "moved" in capsys.readouterr().err


def test_rotation_moves_aside_an_old_checkpoint_that_rotted(tmp_path, capsys):
    rotation = Rotation(tmp_path, 2)
    for step in (1, 2):
        rotation.saved(save(tmp_path, step))
    (tmp_path / "checkpoints" / "step_00000002" / "config.json").write_text("{ }")
    rotation.saved(save(tmp_path, 3))
    assert names(tmp_path) == ["damaged_step_00000002", "step_00000001", "step_00000003"]
    assert "config.json is corrupt" in capsys.readouterr().err


def test_a_second_damaged_checkpoint_of_a_step_gets_another_name(tmp_path):
    for _ in range(2):
        save(tmp_path, 2)
        move_damaged_aside(tmp_path, read_checkpoint(save(tmp_path, 1)))
    assert names(tmp_path) == ["damaged_step_00000002", "damaged_step_00000002_2", "step_00000001"]


def test_a_moved_checkpoint_is_a_link_that_rotation_removes(tmp_path):
    rotation, elsewhere = Rotation(tmp_path, 1), tmp_path / "elsewhere"
    rotation.saved(save(tmp_path, 1))
    (tmp_path / "checkpoints" / "step_00000001").rename(elsewhere)
    (tmp_path / "checkpoints" / "step_00000001").symlink_to(elsewhere)
    assert newest_checkpoint(tmp_path)[0].step == 1
    save(tmp_path, 1)  # replaces the link, not its target
    assert not (tmp_path / "checkpoints" / "step_00000001").is_symlink()
    (tmp_path / "checkpoints" / "step_00000002").symlink_to(tmp_path / "nowhere")
    save(tmp_path, 2)
    (tmp_path / "checkpoints" / "step_00000003").symlink_to(save(tmp_path, 4))
    rotation.saved(tmp_path / "checkpoints" / "step_00000004")
    assert names(tmp_path) == ["step_00000004"]
    read_checkpoint(elsewhere)
    read_checkpoint(tmp_path / "checkpoints" / "step_00000004")


@pytest.fixture
def unprivileged():
    """A folder, with this process as a user whom permissions hold back: root isn't."""
    folder, nobody = Path(tempfile.mkdtemp()), 65534
    is_root = os.geteuid() == 0
    try:
        if is_root:
            os.chown(folder, nobody, -1)
            try:
                os.seteuid(nobody)
            except OSError as error:
                pytest.skip(f"root can't become another user here: {error}")
        if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
            pytest.skip(f"another user can't write to {folder}")
        yield folder
    finally:
        if is_root:
            os.seteuid(0)
        for found, _, _ in os.walk(folder):
            Path(found).chmod(0o700)
        shutil.rmtree(folder)


@pytest.mark.parametrize("unreadable", ["", "state.json", "model.safetensors"])
def test_a_checkpoint_that_may_not_be_read_is_passed_over_by_name(unprivileged, unreadable):
    save(unprivileged, 1)
    save(unprivileged, 2)
    (unprivileged / "checkpoints" / "step_00000002" / unreadable).chmod(0)
    newest, problems = newest_checkpoint(unprivileged)
    assert newest.step == 1
    assert len(problems) == 1 and "step_00000002" in problems[0] and "Permission denied" in problems[0]
    move_damaged_aside(unprivileged, newest)
    assert names(unprivileged) == ["damaged_step_00000002", "step_00000001"]


def test_a_folder_of_checkpoints_that_may_not_be_read_is_not_taken_for_empty(unprivileged):
    save(unprivileged, 1)
    (unprivileged / "checkpoints").chmod(0)
    with pytest.raises(CheckpointError, match="checkpoints can't be read"):
        newest_checkpoint(unprivileged)


def test_an_old_checkpoint_that_stays_does_not_end_the_run(unprivileged, capsys):
    rotation, stuck = Rotation(unprivileged, 1), unprivileged / "checkpoints" / "step_00000001"
    rotation.saved(save(unprivileged, 1))
    stuck.chmod(0o500)
    for step in (2, 3):
        rotation.saved(save(unprivileged, step))
        assert names(unprivileged) == ["step_00000001", f"step_{step:08d}"]
    assert capsys.readouterr().err.count(f"warning: the old checkpoint {stuck} can't be removed") == 1
    stuck.chmod(0o700)
    rotation.saved(save(unprivileged, 4))
    assert names(unprivileged) == ["step_00000004"]


def test_leftovers_that_stay_do_not_end_the_run(unprivileged, capsys):
    """Nor does a checkpoint that was replaced, which is one when the next run starts."""
    old = save(unprivileged, 5)
    old.chmod(0o500)
    save(unprivileged, 5)
    sweep(unprivileged)
    (left,) = (name for name in names(unprivileged) if name != "step_00000005")
    assert read_checkpoint(old).step == 5
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "the checkpoint that" in said[0] and left in said[1]


@pytest.mark.parametrize("kept", ["new", "old"])
def test_a_kill_while_a_checkpoint_is_replaced_loses_none(tmp_path, kept):
    """Between the two renames only hidden folders have the step; the newest complete one gets the name."""
    old = save(tmp_path, 5, config={"seed": "old"})
    old.rename(old.with_name(".step_00000005.77.replaced.tmp"))
    new = save(tmp_path, 5, config={"seed": "new"})
    if kept == "old":
        (new / "config.json").unlink()
    new.rename(new.with_name(".step_00000005.77.tmp"))
    sweep(tmp_path)
    assert names(tmp_path) == ["step_00000005"]
    assert newest_checkpoint(tmp_path)[0].state["config"] == {"seed": kept}


@pytest.mark.slow
def test_every_flipped_bit_of_a_state_is_found_or_changes_nothing(tmp_path):
    path = save(tmp_path, 3) / "state.json"
    good, content = read_checkpoint(path.parent).state, path.read_bytes()
    for position in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[position] ^= 1 << bit
            path.write_bytes(flipped)
            try:
                found = read_checkpoint(path.parent).state
            except CheckpointError:
                continue
            assert found == good


@pytest.mark.parametrize("name", ["state.json", "model.safetensors"])
@pytest.mark.parametrize(
    "damage",
    [
        os.mkfifo,
        os.mkdir,
        lambda path: path.symlink_to(path),
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.write_text("[" * 100_000),
        lambda path: path.write_text('{"step": ' + "1" * 5000 + "}"),
        lambda path: path.write_bytes(bytes(66 << 20)),
    ],
    ids=["fifo", "folder", "loop", "device", "nested", "number", "large"],
)
def test_an_unreadable_checkpoint_is_passed_over_by_name(tmp_path, name, damage):
    save(tmp_path, 1)
    path = save(tmp_path, 2) / name
    path.unlink()
    damage(path)
    good, problems = newest_checkpoint(tmp_path)
    assert good.step == 1 and str(path) in problems[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"host_threads": 100_000}, "host_threads is 100000, not between 1 and 4096"),
        ({"samples": -1}, "samples is -1"),
        ({"sha256": {"../config.json": "00"}}, "sha256 has"),
        *(({"sha256": {name: "00"}}, "sha256 has") for name in ("", "..", "a\0", "\ud800", "x" * 256)),
        ({"sha256": {"config.json": {}}}, "sha256 has"),
        ({"progress": {"record": {"loss": {}}, "evaluation_due": False}}, "the record in progress is"),
        ({"rng_state": [1, 3]}, "doesn't match its own checksum"),
        ({"state_sha256": None}, "doesn't match its own checksum"),
    ],
)
def test_a_state_that_was_changed_is_a_clear_error(tmp_path, change, words):
    path = save(tmp_path, 1) / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError, match=words):
        read_checkpoint(path.parent)


def test_a_checkpoint_under_another_steps_name_is_refused(tmp_path):
    folder = save(tmp_path, 1)
    with pytest.raises(CheckpointError, match="the state of step 1, not of its folder's step"):
        read_checkpoint(folder.rename(folder.with_name("step_00000002")))


def test_a_state_of_the_first_format_has_no_checksum_of_its_own(tmp_path):
    path = save(tmp_path, 1) / "state.json"
    state = json.loads(path.read_text())
    del state["state_sha256"]
    path.write_text(json.dumps({**state, "format": 1}))
    assert read_checkpoint(path.parent).step == 1


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(victim)
    with pytest.raises(TrainingError, match="is a symbolic link"), hold_folder(tmp_path / "run"):
        pass
    assert victim.read_text() == "mine"


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    save(tmp_path, 5, config={"seed": 1})
    save(tmp_path, 5, config={"seed": 2})
    assert newest_checkpoint(tmp_path)[0].state["config"] == {"seed": 2}


def test_weights_folder_is_a_checkpoint_or_the_newest_of_an_output_folder(tmp_path):
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    assert resolve_weights_folder(first) == first
    assert resolve_weights_folder(tmp_path) == second
    with pytest.raises(CheckpointError, match="no such folder"):
        resolve_weights_folder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint found"):
        resolve_weights_folder(tmp_path / "empty")


def test_resume_is_the_same_run_or_an_error_that_names_the_key(tmp_path, capsys):
    config = {"seed": 1, "eval_steps": 5, "training_steps": 10, "layers_per_ipu": (1, 1)}
    assert checkpoint_to_resume(tmp_path, config, resume=False) is None
    with pytest.raises(CheckpointError, match="omit --resume"):
        checkpoint_to_resume(tmp_path, config, resume=True)
    save(tmp_path, 4, config=config)
    with pytest.raises(TrainingError, match="--resume"):
        checkpoint_to_resume(tmp_path, config, resume=False)
    assert checkpoint_to_resume(tmp_path, {**config, "eval_steps": 7}, resume=True).step == 4
    assert capsys.readouterr().err == ""
    assert checkpoint_to_resume(tmp_path, {**config, "training_steps": 20}, resume=True).step == 4
    assert "training_steps was 10 and is now 20" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="is already at step 4"):
        checkpoint_to_resume(tmp_path, {**config, "training_steps": 3}, resume=True)
    with pytest.raises(CheckpointError, match=r"seed was 1 .* is 2"):
        checkpoint_to_resume(tmp_path, {**config, "seed": 2}, resume=True)


def test_a_key_that_is_newer_than_the_checkpoint_had_its_default(tmp_path):
    config = {"training_steps": 10, "seed": 1}
    save(tmp_path, 4, config=config)
    newer = {**config, "glue_task": "mnli", "matmul_proportion": [0.25]}
    assert checkpoint_to_resume(tmp_path, newer, resume=True).step == 4
    with pytest.raises(CheckpointError, match=r'glue_task was "mnli" in .* and is "rte" now'):
        checkpoint_to_resume(tmp_path, {**newer, "glue_task": "rte"}, resume=True)


def test_resuming_arguments_drop_what_started_the_run():
    arguments = ["--config", "a b", "--checkpoint", "x", "--seed", "3"]
    assert resuming_arguments(arguments) == ["--config", "a b", "--seed", "3", "--resume"]
    assert resuming_arguments(["--config", "a", "--checkpoint=x", "--resume"]) == [
        "--config",
        "a",
        "--resume",
    ]


def run_script(text):
    command = [sys.executable, "-c", text]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.slow
def test_one_run_holds_a_folder_at_a_time(tmp_path):
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from training import TrainingError, hold_folder
try:
    with hold_folder(Path({str(tmp_path)!r})):
        print("held")
except TrainingError as error:
    print(error)
"""
    with hold_folder(tmp_path):
        said = run_script(script)
        assert "in use by another run" in said and str(os.getpid()) in said
    assert run_script(script) == "held\n"


def test_state_is_readable_json(tmp_path):
    state = json.loads((save(tmp_path, 7) / "state.json").read_text())
    assert state["step"] == 7 and set(state["sha256"]) == {
        "config.json",
        "model.safetensors",
        "optimizer.safetensors",
    }


@pytest.mark.parametrize("name", ["hello", "other/w", "ipu_state/"])
def test_a_tensor_that_is_no_optimiser_state_is_named(tmp_path, name):
    checkpoint = read_checkpoint(save(tmp_path, 3))
    save_file({name: torch.zeros(1)}, str(checkpoint.folder / "optimizer.safetensors"))
    with pytest.raises(CheckpointError, match=f"a tensor named '{name}'"):
        checkpoint.optimizer_state()

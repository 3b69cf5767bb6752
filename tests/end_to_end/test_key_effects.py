"""Keys that say that a change of them alters nothing: it doesn't."""

import run_pretraining
from config import keys_that_alter
from tests.end_to_end.test_resume import assert_same_run

STEPS = ("--training-steps", 4, "--eval-steps", 2, "--hidden-dropout", 0.1)


def test_keys_that_alter_nothing_leave_weights_and_metrics_alone(tmp_path, flags):
    changed = {
        "checkpoint_steps": 4,
        "checkpoints_to_keep": 1,
        "log_steps": 3,
        "wandb_project": "another",
        "dataloader_workers": 1,
        "async_dataloader": True,
        "floating_point_exceptions": True,
        "executable_cache": tmp_path / "executables",
    }
    assert set(changed) < keys_that_alter("nothing")
    words = []
    for key, value in changed.items():
        words += ["--" + key.replace("_", "-"), *([] if value is True else [value])]
    run_pretraining.main(flags(tmp_path / "plain", *STEPS))
    run_pretraining.main(flags(tmp_path / "changed", *STEPS, *words))
    assert_same_run(tmp_path / "plain", tmp_path / "changed", 4)


def test_a_run_resumes_with_other_files(tmp_path, flags):
    """A folder for profiles may be given, or another one, when a run goes on."""
    assert "profile_folder" in keys_that_alter("nothing")
    run_pretraining.main(flags(tmp_path / "run", *STEPS, "--profile-folder", tmp_path / "one"))
    resumed = (*STEPS, "--profile-folder", tmp_path / "two", "--resume")
    assert run_pretraining.main(flags(tmp_path / "run", *resumed)).step == 4

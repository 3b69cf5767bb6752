"""Uploads a checkpoint to the Hugging Face hub, where a user asks for it."""

from __future__ import annotations

from pathlib import Path

from .errors import TrainingError

# What a run needs to resume and a model's user doesn't.
NOT_UPLOADED = ("optimizer.safetensors", "state.json")


def push_to_hub(folder: Path, repository: str) -> str:
    """Uploads a checkpoint's model, tokeniser and card to a repository; returns its address.

    The repository is created, private, if it doesn't exist. Raises TrainingError: the checkpoint stays as it
    is.
    """
    try:
        from huggingface_hub import HfApi

        api = HfApi()
        address = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=address.repo_id,
            folder_path=str(folder),
            ignore_patterns=list(NOT_UPLOADED),
            commit_message=f"Model of {folder.name}",
        )
    except Exception as error:  # the hub's client raises its HTTP library's errors too, of many types
        raise TrainingError(
            f"{folder} can't be uploaded to {repository!r} ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}). The checkpoint is saved: run `hf auth login` and check "
            "name and network, then repeat the command with --resume"
        ) from error
    return str(address)

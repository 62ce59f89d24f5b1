"""A finished model folder goes to the Hugging Face hub. Only ever called because the user said so.

Knows nothing of what the folder's files mean.
"""

import os
import re
from pathlib import Path
from typing import Any

from epic_retrieval.checkpoint_config import CONFIG_NAME
from epic_retrieval.errors import EpicError, InputError

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Upload a model folder as one commit, making the repository and the branch where needed.

    Args:
        folder: what `export_checkpoint` wrote, or another checkpoint folder.
        repo_id: `owner/name`.
        private: make the repository private. One that exists must be private then.
        revision: branch to commit to; None takes the main one.
        token: of the hub; None takes the one that this machine is logged in with.

    Returns:
        The address of the commit.

    Raises:
        InputError: a malformed `repo_id`, or a folder that holds no model.
        EpicError: the hub cannot be reached or refuses, or the repository is public and `private`
            was asked for. The folder stays as it is.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    path = Path(folder)
    check_push(path, repo_id)
    # The base of the hub's own error is that of its HTTP library, whichever that is.
    http: Any = HfHubHTTPError.__bases__
    failures: tuple[type[Exception], ...] = (*http, HFValidationError, OSError)
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True, repo_type="model")
        if private and not api.repo_info(repo_id, repo_type="model").private:
            raise EpicError(
                f"{repo_id} exists and is public, but a private upload was asked for; nothing was"
                " uploaded. Take another name, or allow a public one (--public)"
            )
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True, repo_type="model")
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=path,
            repo_type="model",
            revision=revision,
            commit_message="Upload a model exported by epic-retrieval",
        )
    except failures as error:
        raise EpicError(
            f"{path} could not be uploaded to {repo_id}: {_reason(error)}. The folder is complete;"
            f" try again later with: epic export {path} --push {repo_id}"
        ) from error
    return str(commit.commit_url)


def check_push(folder: Path, repo_id: str) -> None:
    """Find out what can be found out without the network.

    Raises:
        InputError: a malformed `repo_id`, or a folder that holds no model.
    """
    check_repository(repo_id)
    if not any((folder / name).is_file() for name in (CONFIG_NAME, "modules.json")):
        raise InputError(
            f"{folder} holds no model (neither {CONFIG_NAME} nor modules.json); give the folder of"
            " a checkpoint"
        )


def check_repository(repo_id: str) -> None:
    """Raise InputError unless `repo_id` is `owner/name`."""
    if not _REPOSITORY.fullmatch(repo_id):
        raise InputError(f'{repo_id!r} is no repository of the hub; expected "owner/name"')


def _reason(error: Exception) -> str:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return "HF_HUB_OFFLINE is set, so the hub is not asked"
    first = str(error).strip().split("\n")[0].rstrip(".")
    return first or type(error).__name__

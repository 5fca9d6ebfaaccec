"""Upload of exports to the Hugging Face Hub."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from mosaicbert.config import ConfigError

# Of the network, the Hub and the access token. The HTTP library, whose errors are a base class, depends on the version.
_ERRORS: tuple[type[Exception], ...] = (*HfHubHTTPError.__bases__, HFValidationError)
_EXPORTS = "step-*[0-9]"  # folders of the exported checkpoints of a run


def push(folder: Path, name: str) -> str:
    """Upload a Hugging Face folder to the Hub, a run with a revision for each exported checkpoint.

    Args:
        folder: Hugging Face folder, or the folder `hf` of a run. The newest export of a run becomes the branch `main`,
            and the export of step N the branch `step-N`.
        name: Name of the model, `user/name`. The repository is created if it does not exist.

    Returns:
        URL of the repository.

    Raises:
        ConfigError: If the name is invalid, there is no access token, or the Hub rejects the upload.
    """
    steps = sorted(folder.glob(_EXPORTS), key=lambda path: int(path.name.rpartition("-")[2]))
    api = HfApi()
    try:
        url = api.create_repo(name, exist_ok=True)
        for step in steps:
            api.create_branch(name, branch=step.name, exist_ok=True)
            _upload(api, step, name, step.name)
        _upload(api, steps[-1] if steps else folder, name, "main")
    except _ERRORS as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise ConfigError(
            f"{folder} cannot be uploaded to {name} ({reason}). Check the name, and log in with `hf auth login`."
        ) from error
    return str(url)


def _upload(api: HfApi, folder: Path, name: str, revision: str) -> None:
    api.upload_folder(
        repo_id=name,
        folder_path=folder,
        revision=revision,
        commit_message=f"Upload {folder.name}",
        ignore_patterns=["*.partial"],
    )

"""The Hugging Face hub: downloads and uploads folders of adapters and released checkpoints."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any


def repository(address: str) -> str:
  """Returns owner/name of `hf://owner/name`, or of the name itself; raises ValueError for anything else."""
  name = address.removeprefix("hf://")
  if len(name.split("/")) != 2 or not all(name.split("/")):
    raise ValueError(f"the address is {address!r}; wanted hf://owner/name, the revision apart (revision=…)")
  return name


def download(address: str, files: Sequence[str], revision: str | None) -> pathlib.Path:
  """Returns the local folder with files (patterns) of `hf://owner/name`, from the hub or, offline, its cache."""
  name = repository(address)
  return pathlib.Path(_hub().snapshot_download(name, revision=revision, allow_patterns=list(files)))


def upload(
  folder: str | os.PathLike, address: str, files: Sequence[str], private: bool, message: str, token: str | None = None
) -> str:
  """Uploads files of a folder in one commit, and returns the page of their repository.

  Args:
    folder: the local folder.
    address: `hf://owner/name`, or the name alone; the repository is made if it does not exist.
    files: patterns of the files. Files of these patterns that only the repository has are deleted.
    private: whether a new repository is private.
    message: of the commit.
    token: by default the one of `hf auth login`, or HF_TOKEN.

  Raises ConnectionError, in one line, if the hub is not reached or refuses.
  """
  name, hub = repository(address), _hub()
  api = hub.HfApi(token=token)
  try:
    api.create_repo(name, private=private, exist_ok=True)
    done = api.upload_folder(
      repo_id=name, folder_path=folder, allow_patterns=list(files), delete_patterns=list(files), commit_message=message
    )
  except (OSError, ValueError) as error:  # the client raises these for a refusal too
    status = getattr(getattr(error, "response", None), "status_code", None)
    advice = "; `hf auth login`, or set HF_TOKEN to a token that may write there" if status in (401, 403) else ""
    raise ConnectionError(f"{name} was not sent: {' '.join(str(error).split())}{advice}") from error
  return str(getattr(done, "repo_url", None) or name)


def _hub() -> Any:
  try:
    import huggingface_hub
  except ImportError as error:
    raise ImportError("the hub wants the package huggingface_hub: pip install 'qat-jax[encoders]'") from error
  return huggingface_hub

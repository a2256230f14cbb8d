"""A model's folder, here or on the Hugging Face Hub: weights, facts and a model card."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from unisolo.checkpoint import model_facts, save_model
from unisolo.config import Config
from unisolo.files import write_bytes, write_json
from unisolo.graphs import Graph
from unisolo.hub.card import HubError, Metrics, model_card
from unisolo.models import UniSolo
from unisolo.tasks import get_task

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["HubModel", "fetch_weights"]

WEIGHTS, FACTS, CARD = "model.safetensors", "config.json", "README.md"
"""The files of a folder. Weights hold all that a model needs; the Hub counts downloads by the
facts."""


class HubModel:
    """What `Predictor` can do with folders and the Hub.

    Attributes:
        model: The model or graph.
        task: Name of the task it answers.
    """

    model: UniSolo | Graph
    task: str

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        task: str | None = None,
        device: str | torch.device = "auto",
        dtype: str = "auto",
        compile: bool = False,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> Self:
        """Open a folder that `save_pretrained` wrote, or a model on the Hugging Face Hub.

        Args:
            name: A folder, or "user/model". A folder of that name is meant first.
            task: As for the class; None = the one the model was trained for.
            device: As for the class.
            dtype: As for the class.
            compile: As for the class.
            revision: Branch, tag or commit on the Hub; None = its main branch.
            token: For private models; None = the one `hf auth login` keeps, False = none.
            cache_dir: Where fetched files are kept; None = the Hub's own cache.
            force_download: Fetch again what the cache has.
            local_files_only: Fetch nothing; the environment variable HF_HUB_OFFLINE=1 likewise.

        Raises:
            HubError: If the folder or the model is not there, or cannot be fetched.
            ValueError: As the class.
        """
        if task is not None:
            get_task(task)  # an unknown name is told before a file is fetched
        path = fetch_weights(
            name,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
        )
        opened = cast(Any, cls)(path, task=task, device=device, dtype=dtype, compile=compile)
        return cast("Self", opened)

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        license: str | None = None,
        metrics: Metrics | None = None,
        dataset: str | None = None,
        name: str | None = None,
    ) -> Path:
        """Write a folder that `from_pretrained` opens and the Hub shows.

        It holds `model.safetensors` (without paths of this machine), `config.json` and `README.md`,
        the model card. A card that is there already is left as it is: people write in it.

        Args:
            folder: Made if absent.
            license: Of the weights, as the Hub spells it, e.g. "cc-by-4.0".
            metrics: In percent by name, or a `metrics.json` that training and evaluation write.
            dataset: What the metrics are of, e.g. "COCO val2017".
            name: "user/model" it will have on the Hub; stands in the card.

        Returns:
            The folder.

        Raises:
            HubError: If the predictor runs an exported graph, or there are metrics without
                `dataset`.
            OSError: If a file cannot be written.
        """
        model, folder = self._network(), Path(folder)
        card = model_card(model, license=license, metrics=metrics, dataset=dataset, name=name)
        config, categories = model_facts(model)
        save_model(model, folder / WEIGHTS, config=_without_paths(config))
        facts = {
            "library_name": "unisolo",
            "task": config.task,
            "backbone": config.model.backbone,
            "id2label": {str(label): entry.name for label, entry in enumerate(categories)},
        }
        write_json(folder / FACTS, facts, indent=2)
        if not (folder / CARD).exists():
            write_bytes(folder / CARD, str(card).encode())
        return folder

    def push_to_hub(
        self,
        name: str,
        *,
        license: str | None = None,
        metrics: Metrics | None = None,
        dataset: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        message: str = "Upload a unisolo model",
    ) -> str:
        """Put the model on the Hugging Face Hub, in one commit.

        The repository is made if it is not there. A model card that it has already is left as it
        is.

        Args:
            name: "user/model".
            license: As for `save_pretrained`.
            metrics: Likewise.
            dataset: Likewise.
            private: Whether a new repository is private; None = as your account has it.
            token: With the right to write; None = the one `hf auth login` keeps.
            revision: Branch to commit to; None = main.
            create_pr: Propose the commit instead of making it.
            message: Of the commit.

        Returns:
            Address of the commit.

        Raises:
            HubError: As `save_pretrained`, or if the Hub cannot be reached or refuses.
        """
        from huggingface_hub import HfApi

        if not _is_name(name):
            raise HubError(f"{name!r} is no name of a model on the Hub; give 'user/model'")
        with tempfile.TemporaryDirectory(prefix="unisolo-hub-") as folder:
            self.save_pretrained(
                folder, license=license, metrics=metrics, dataset=dataset, name=name
            )
            try:
                api = HfApi(token=token)
                api.create_repo(name, private=private, exist_ok=True)
                has_card = api.file_exists(name, CARD, revision=revision)
                commit = api.upload_folder(
                    repo_id=name,
                    folder_path=folder,
                    commit_message=message,
                    revision=revision,
                    create_pr=create_pr,
                    ignore_patterns=[CARD] if has_card else None,
                )
            # Those of connections are of another library, which one depends on the version.
            except Exception as error:
                raise HubError(f"{name}: could not be pushed: {_first_line(error)}") from error
        return str(commit.pr_url if create_pr else commit.commit_url)

    def _network(self) -> UniSolo:
        if isinstance(self.model, Graph):
            raise HubError(
                f"{self.model.path}: an exported graph; open the checkpoint it was made from and "
                "save that"
            )
        return self.model


def fetch_weights(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """Return the weights file of a folder or of a model on the Hub; see `HubModel`.

    Raises:
        HubError: If it is not there or cannot be fetched.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    folder, text = Path(name), os.fspath(name)
    if folder.is_dir():
        if not (folder / WEIGHTS).is_file():
            raise HubError(
                f"{folder}: holds no {WEIGHTS}; give a folder that save_pretrained wrote"
            )
        return folder / WEIGHTS
    if folder.is_file():
        raise HubError(f"{folder}: a file; open it with Predictor({text!r})")
    if not _is_name(text):
        raise HubError(f"{text}: no such folder, and no name of a model on the Hub (user/model)")
    try:
        path = hf_hub_download(
            text,
            WEIGHTS,
            revision=revision,
            token=token,
            cache_dir=None if cache_dir is None else Path(cache_dir),
            force_download=force_download,
            local_files_only=local_files_only,
            library_name="unisolo",
        )
    except (OSError, ValueError, EntryNotFoundError) as error:
        raise HubError(f"{text}: {_reason(error, revision)}") from error
    return Path(path)


def _is_name(text: str) -> bool:
    """Whether a text can name a model on the Hub."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text, re.ASCII) is not None


def _reason(error: Exception, revision: str | None) -> str:
    """One sentence for people, instead of requests and their numbers."""
    from huggingface_hub import errors

    login = "give token=, or run `hf auth login`"
    # The more special kind first: these are kinds of one another.
    for kind, sentence in (
        (errors.GatedRepoError, f"its owner gives access; ask on its page, then {login}"),
        (
            errors.RepositoryNotFoundError,
            "no such folder, and no such model on the Hub; check the name (user/model). If it is "
            f"private, {login}",
        ),
        (errors.RevisionNotFoundError, f"it has no revision {revision!r}"),
        (
            errors.LocalEntryNotFoundError,
            f"no such folder, it is not among the files fetched earlier (revision "
            f"{revision or 'main'!r}), and the Hub cannot be reached or may not be asked "
            "(local_files_only, HF_HUB_OFFLINE)",
        ),
        (errors.EntryNotFoundError, f"holds no {WEIGHTS}, so it is no model of unisolo"),
    ):
        if isinstance(error, kind):
            return sentence
    return f"could not be fetched: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _without_paths(config: Config) -> Config:
    """The configuration without what it says about the machine it was trained on."""
    fresh = Config()
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"root": None}),
            "train": config.train.model_copy(update={"out": fresh.train.out}),
            "model": config.model.model_copy(update={"backbone_weights": None}),
        }
    )

"""Agents on the Hugging Face Hub: each in a repository of its own, a zoo of one with a model card."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from dxmi_rl.agents.base import Agent
from dxmi_rl.utils.checks import CheckpointError, require
from dxmi_rl.zoo.pretrained import CARD, INDEX, add_pretrained, list_pretrained, load_pretrained, read_index


def push_to_hub(
    agent: Agent[Any], repo_id: str, *, name: str | None = None, command: str = "", licence: str | None = None,
    private: bool = False, token: str | None = None, endpoint: str | None = None,
) -> str:  # fmt: skip
    """Put a trained agent on the Hub, with a card that is made from it; the repository's address.

    Args:
        repo_id: ``"user/repository"``, made if need be; one agent has one.
        name: what the agent is called there; by default ``"<agent>-<task>"``.
        command: what trains it again, for the card.
        licence: what the card says, such as "mit"; None: nothing.
        token: a token that may write; by default the one that ``hf auth login`` has stored.
        endpoint: address of another server than the Hub.

    Raises MissingExtraError without huggingface_hub (extra ``hub``), as ``add_pretrained``, ValueError for a repository
    that holds another agent, and what huggingface_hub raises for one that cannot be written.
    """
    hub = require("huggingface_hub", "hub")
    name = f"{agent.name}-{agent.task.name}" if name is None else name
    api = hub.HfApi(endpoint=endpoint, token=token, library_name="dxmi_rl")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        add_pretrained(agent, name, folder, command=command or "a script of its author's", licence=licence)
        card = (folder / f"{name}.md").read_text(encoding="utf-8")
        card = card.replace(f'load_pretrained("{name}")', f'from_hub("{repo_id}")')
        (folder / CARD).write_text(front_matter(agent, licence) + card, encoding="utf-8", newline="\n")
        (folder / f"{name}.md").unlink()
        api.create_repo(repo_id, private=private, exist_ok=True)
        if api.file_exists(repo_id, INDEX):
            there = hub.hf_hub_download(
                repo_id, INDEX, token=token, endpoint=endpoint, local_dir=folder / "there", force_download=True
            )
            names = list_pretrained(Path(there).parent)
            if names != [name]:
                raise ValueError(f"repo_id must be a repository of its own: {repo_id!r} holds {names}, not {name!r}.")
            shutil.rmtree(folder / "there")
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=f"{name}, by dxmi_rl")
    return f"{api.endpoint}/{repo_id}"


def from_hub(
    repo_id: str, *, name: str | None = None, revision: str | None = None, device: str | torch.device | None = None,
    token: str | None = None, endpoint: str | None = None, cache: Path | None = None,
) -> Agent[Any]:  # fmt: skip
    """An agent that ``push_to_hub`` has put on the Hub. Nothing but the index and its safetensors file is fetched.

    Args:
        name: which agent, where the repository has several.
        revision: branch, tag or commit; by default the newest.
        cache: folder for what is fetched; by default huggingface_hub's.

    Raises MissingExtraError without huggingface_hub (extra ``hub``), ValueError where a name is needed, CheckpointError
    for a repository without a zoo, as ``load_pretrained``, and what huggingface_hub raises for one that cannot be read.
    """
    hub = require("huggingface_hub", "hub")
    place: dict[str, Any] = {"token": token, "endpoint": endpoint, "cache_dir": cache}
    commit = hub.HfApi(endpoint=endpoint, token=token).repo_info(repo_id, revision=revision).sha
    try:
        index = Path(hub.hf_hub_download(repo_id, INDEX, revision=commit, **place))
    except hub.errors.EntryNotFoundError as error:
        raise CheckpointError(
            f"repository {repo_id!r} holds no agent that push_to_hub wrote: it has no {INDEX}."
        ) from error
    entries = read_index(index.parent)
    if name is None and len(entries) != 1:
        raise ValueError(f"name must say which agent of {repo_id!r}, one of {sorted(entries)}.")
    chosen = next(iter(entries)) if name is None else name
    if chosen in entries:
        hub.hf_hub_download(repo_id, entries[chosen]["file"], revision=commit, **place)
    return load_pretrained(chosen, folder=index.parent, device=device)


def front_matter(agent: Agent[Any], licence: str | None) -> str:
    """What the Hub reads of a model card."""
    tags = ["reinforcement-learning", "diffusion", "dxmi_rl", agent.name, agent.task.name]
    lines = ["---", "library_name: dxmi_rl", *([f"license: {json.dumps(licence)}"] if licence else []), "tags:"]
    return "\n".join([*lines, *(f"- {json.dumps(tag)}" for tag in tags), "---", "", ""])

"""A publication to the hub, in one commit, and then a look at what the hub has now."""

from collections.abc import Callable
from pathlib import Path

from huggingface_hub import CommitOperationAdd
from huggingface_hub.utils._validators import validate_repo_id

from convert.card import Publication
from edge.errors import HubError
from edge.model.hub import Hub, Repository, explained

CARD = "README.md"


def check(hub: Hub, repo_id: str) -> None:
    """Refuse before anything is read what cannot end well."""
    with explained(hub, repo_id):
        validate_repo_id(repo_id)
    if repo_id.count("/") != 1:
        raise HubError(repo_id, "is no name of a repository", "name it as OWNER/REPO")
    if not hub.token:
        raise HubError(repo_id, "cannot be written without a token", f"make one at {hub.endpoint}/settings/tokens "
                       "and set HF_TOKEN")  # fmt: skip


def card_of(publication: Publication, repo_id: str, folder: Path) -> bytes:
    """The folder's own README.md if a person wrote one, else the card."""
    own = folder / CARD
    return own.read_bytes() if own.is_file() else publication.card(repo_id).encode()


def push(
    hub: Hub, publication: Publication, repo_id: str, card: bytes, *, private: bool, told: Callable[[str], None]
) -> str:
    """Upload everything and return the commit's address. Raises HubError; what the hub has is not sent twice."""
    check(hub, repo_id)
    operations = [CommitOperationAdd(name, str(path)) for name, path in sorted(publication.files.items())]
    operations.append(CommitOperationAdd(CARD, card))
    types = ", ".join(made.type for made in publication.models)
    with explained(hub, repo_id):
        try:
            hub.api.create_repo(repo_id, private=private, exist_ok=True)
            told(f"uploading {len(operations)} files")
            commit = hub.api.create_commit(
                repo_id, operations, commit_message=f"Add {types} of {publication.base_model}"
            )
        except (RuntimeError, ValueError, KeyError) as error:
            cause = str(error.__cause__ or error).split("\n", 1)[0][:200]
            raise HubError(repo_id, f"was not uploaded ({cause})", "run the same command again") from error
    _check_arrived(publication, hub.repository(repo_id))
    return str(commit.commit_url)


def _check_arrived(publication: Publication, repository: Repository) -> None:
    for made in publication.models:
        file = repository.file(made.path.name)
        if file is None or file.sha256 != made.sha256:
            raise HubError(
                f"{repository.repo_id}/{made.path.name}", "did not arrive whole", "run the same command again"
            )

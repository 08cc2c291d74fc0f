"""Errors of the Hugging Face Hub client, as errors of isodense with a hint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from isodense.pipeline.cache import require_writable
from isodense.pipeline.errors import DataError
from isodense.pipeline.storage import storing


@contextmanager
def clear_errors(repo: str, what: str, hint: str) -> Iterator[None]:
    """Turn exceptions of ``huggingface_hub`` inside the block into a `DataError`.

    Parameters
    ----------
    repo : str
        ``owner/name``.
    what : str
        File or revision that is fetched, for the message.
    hint : str
        What to do if the connection fails.

    Raises
    ------
    DataError
        If the repository, revision or file does not exist, or cannot be fetched.
    StorageError
        If the cache of the Hub's files cannot be written, or its disk is full.
    """
    from huggingface_hub import constants, errors
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    login = "accept its terms on its page, then log in with `hf auth login` or set HF_TOKEN"
    cache = Path(constants.HF_HUB_CACHE)
    try:
        with storing(cache):
            yield
    except errors.GatedRepoError:
        raise DataError(f"{what}: access is gated", repo, hint=login) from None
    except errors.RepositoryNotFoundError:
        raise DataError("no such repository on the Hub, or no access", repo, hint=login) from None
    except errors.RevisionNotFoundError:
        message = f"has no {what}"
        raise DataError(message, repo, hint="check the revision in params.yaml") from None
    except errors.RemoteEntryNotFoundError:
        raise DataError(f"has no file {what}", repo, hint=hint) from None
    except (OSError, httpx.HTTPError, errors.CachedRepoTreeNotFoundError, RuntimeError) as error:
        if not constants.HF_HUB_OFFLINE:
            require_writable(cache, "HF_HOME")
        cause = error.__cause__ or error
        first = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        message = f"{what} could not be fetched ({first})"
        raise DataError(message, repo, hint=hint) from error

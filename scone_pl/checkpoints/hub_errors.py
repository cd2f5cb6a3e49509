"""What huggingface_hub raises, as one line that says what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from scone_pl.errors import UserError


class UnreachableError(UserError):
    """The hub did not answer."""


def endpoint() -> str | None:
    """The server of HF_ENDPOINT; None = the default."""
    return os.environ.get("HF_ENDPOINT") or None


@contextmanager
def one_line(repository: str, kind: str = "model") -> Iterator[None]:
    """Turns an exception of huggingface_hub into a `UserError`.

    Args:
        repository: its id, with @revision if one was asked for.
        kind: model or dataset.

    Raises:
        UnreachableError: no answer, or one that says to try again.
        UserError: everything else.
    """
    from huggingface_hub import constants, errors

    # The base class of the HTTP client, which depends on the version: httpx, httpx2 or requests.
    transport: Any = errors.HfHubHTTPError.__mro__[1]
    server = endpoint() or constants.ENDPOINT
    repo, _, revision = repository.partition("@")
    log_in = "log in (hf auth login, or set HF_TOKEN)"
    again = "run the same command again to resume"
    try:
        yield
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        raise UnreachableError(f"{repository}: {server} cannot be reached ({error}); check the network") from None
    except errors.GatedRepoError:
        raise UserError(f"{repository}: is gated; accept its conditions at {server}/{repo} and {log_in}") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{repository}: no folder here, and {server} has no such {kind}, or it is private; check the id, or "
            f"{log_in}"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{repository}: has no revision {revision}; see {server}/{repo}") from None
    except errors.EntryNotFoundError:
        raise UserError(f"{repository}: a file that it lists is not there; tell its owner at {server}/{repo}") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            raise UserError(f"{repository}: {server} refuses the access ({status}); {log_in}") from None
        raised = UnreachableError if status >= 500 or not status else UserError
        raise raised(f"{repository}: {server} answers {status or error}; {again}") from None
    except errors.HFValidationError as error:
        raise UserError(f"{repository}: {error}") from None
    except transport as error:
        reason = str(error) or type(error).__name__
        raise UnreachableError(
            f"{repository}: no folder here, and {server} cannot be reached ({reason}); check the network, then {again}"
        ) from None
    except OSError as error:
        if error.errno is None:
            raise UnreachableError(f"{repository}: cannot be downloaded ({error}); {again}") from None
        raise

"""Access tokens of Google, by google-auth."""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING

from google import auth
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import Request
from google.oauth2.service_account import Credentials as ServiceAccount

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
"""What the tokens are for."""


class AccessTokens:
    """The tokens of one upstream.

    :param credentials: a service account; ``None``: Application Default Credentials, those that
        every program for Google Cloud finds.
    """

    def __init__(self, credentials: Credentials | None) -> None:
        self._credentials = credentials

    def load(self) -> tuple[str, float | None]:
        """Return a new token and its end. It blocks, and raises errors of google-auth."""
        if self._credentials is None:
            # to find them may take seconds where there is no metadata server
            self._credentials, _ = auth.default(scopes=[SCOPE])
        self._credentials.refresh(Request())
        expiry = self._credentials.expiry
        ends = None if expiry is None else expiry.replace(tzinfo=UTC).timestamp()
        return str(self._credentials.token), ends


def service_account(path: str) -> Credentials:
    """Read the key file of a service account.

    :raises ValueError: it is none.
    """
    try:
        account: Credentials = ServiceAccount.from_service_account_file(path, scopes=[SCOPE])
    except OSError as error:
        raise ValueError(f"must name a readable file: {error.strerror}") from None
    except (ValueError, KeyError, AttributeError, TypeError, GoogleAuthError):
        raise ValueError("must name the key file of a service account, in JSON") from None
    return account

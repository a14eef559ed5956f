"""Access tokens of Microsoft Entra ID, by azure-identity."""

from __future__ import annotations

from azure.identity import DefaultAzureCredential


class AccessTokens:
    """The tokens for one scope, by the chain of DefaultAzureCredential."""

    def __init__(self, scope: str) -> None:
        self._scope = scope

    def load(self) -> tuple[str, float | None]:
        """Return a token and its end. It blocks, and raises errors of azure-identity."""
        # a new one each time: another would return the token that it keeps, though it was refused
        with DefaultAzureCredential() as credential:
            token = credential.get_token(self._scope)
        return token.token, float(token.expires_on)

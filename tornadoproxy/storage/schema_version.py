"""What a database of another schema version than the plugin's is refused with."""

from __future__ import annotations


def migration_refusal(version: int, newest: int) -> str | None:
    """Return why a database of `version` cannot be migrated to `newest`; ``None`` if it can be."""
    if version <= newest:
        return None
    return (
        f"it was written by a newer version of the plugin (schema {version}, and this one has "
        f"{newest}): install the newer one, or name another database"
    )


def reading_refusal(version: int, newest: int, name: str) -> str | None:
    """Return why the plugin `name` cannot read a database of `version`; ``None`` if it can."""
    if version == 0:
        return f"{name} has never written to it: name the database of {name}, or start the proxy"
    if version != newest:
        return (
            "it was written by another version of the plugin: start this version of the proxy, "
            "which updates it"
        )
    return None

"""The translation of texts, images and files into blocks."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable

from tornadoproxy.openai.caching import cache_control
from tornadoproxy.openai.reading import Json, obj, refuse, text

IMAGE_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp")

_TEXT_TYPES = (
    "application/json",
    "application/xml",
    "application/x-yaml",
    "application/yaml",
    "application/javascript",
)

# How the base64 of each kind of file begins. Clients often name an image's type wrongly, which the
# upstream refuses, and name no type for a file.
_BEGINNINGS = {
    "/9j/": "image/jpeg",
    "iVBORw0KGgo": "image/png",
    "R0lGOD": "image/gif",
    "UklGR": "image/webp",
    "JVBERi0": "application/pdf",
}

_DATA_URL = re.compile(r"data:([^;,]{0,127})(?:;[^;,]{1,127}){0,8};base64,", re.IGNORECASE)
_MAX_TITLE = 500  # characters, the upstream's limit


def content_blocks(
    content: object, param: str, block_of: Callable[[Json, str], Json], ignored: list[str]
) -> list[Json]:
    """Return the blocks of a message's content: a string, a list of parts, or ``None``.

    Blank text, which the upstream refuses, is left out.

    :param block_of: returns the block of a part, given its ``param``.
    :param ignored: takes the names of what is dropped.
    :raises InvalidRequest: the content is none of these.
    """
    if content is None:
        return []
    if isinstance(content, str):
        return [text_block(content)] if content.strip() else []
    if not isinstance(content, list):
        refuse(param, "must be a string or a list of parts")
    found: list[Json] = []
    for index, part in enumerate(content):
        where = f"{param}[{index}]"
        block = block_of(obj(part, where), where)
        cached = cache_control(part, where, ignored)
        if cached is not None:
            block["cache_control"] = cached
        if block["type"] != "text" or block["text"].strip():
            found.append(block)
    return found


def text_block(content: str) -> Json:
    """Return a block of text."""
    return {"type": "text", "text": content}


def image_block(url: str, param: str) -> Json:
    """Return the block of an image, given its URL or data URL.

    :raises InvalidRequest: it is neither, or not an image that Claude reads.
    """
    if url[:5].lower() != "data:":
        return {"type": "image", "source": _url_source(url, param)}
    media_type, data, _ = _data_url(url, param)
    if media_type not in IMAGE_TYPES:
        refuse(param, f"must hold one of {', '.join(IMAGE_TYPES)}")
    return {"type": "image", "source": _base64(media_type, data)}


def document_block(file: Json, param: str) -> Json:
    """Return the block of a file with its ``filename``.

    :param file: has a ``file_id``, a ``file_url`` (of a PDF) or ``file_data``.
    :raises InvalidRequest: the data is neither a PDF nor text in UTF-8.
    """
    if file.get("file_id") is not None:
        source: Json = {"type": "file", "file_id": text(file["file_id"], f"{param}.file_id")}
    elif file.get("file_url") is not None:
        source = _url_source(text(file["file_url"], f"{param}.file_url"), f"{param}.file_url")
    else:
        source = _file_source(text(file.get("file_data"), f"{param}.file_data"), param)
    block: Json = {"type": "document", "source": source}
    if file.get("filename") is not None:
        name = text(file["filename"], f"{param}.filename")
        if name.strip():
            block["title"] = name[:_MAX_TITLE]
    return block


def _url_source(url: str, param: str) -> Json:
    if url[:8].lower() != "https://" and url[:7].lower() != "http://":
        refuse(param, "must be an http, https or data URL")
    return {"type": "url", "url": url}


def _file_source(content: str, param: str) -> Json:
    param = f"{param}.file_data"
    if content[:5].lower() == "data:":
        media_type, data, plain = _data_url(content, param)
    else:
        media_type, data, plain = _begins_as(content), content, _decoded(content, param)
    if media_type == "application/pdf":
        return _base64(media_type, data)
    if media_type and not media_type.startswith("text/") and media_type not in _TEXT_TYPES:
        refuse(param, "must hold a PDF or text")
    try:
        return {"type": "text", "media_type": "text/plain", "data": plain.decode()}
    except UnicodeDecodeError:
        refuse(param, "must hold a PDF, or text in UTF-8")


def _data_url(url: str, param: str) -> tuple[str, str, bytes]:
    """Return the media type, the base64 text and the content of a data URL (RFC 2397)."""
    head = _DATA_URL.match(url)
    if head is None:
        refuse(param, "must be a data URL of the form data:<media type>;base64,<data>")
    data = url[head.end() :]
    media_type = _begins_as(data) or head[1].strip().lower()
    return media_type, data, _decoded(data, param)


def _begins_as(data: str) -> str:
    """Return the media type that the beginning of base64 `data` shows; empty if none."""
    return next((kind for start, kind in _BEGINNINGS.items() if data.startswith(start)), "")


def _decoded(data: str, param: str) -> bytes:
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        refuse(param, "must hold valid base64")
    if not content:
        refuse(param, "must not be empty")
    return content


def _base64(media_type: str, data: str) -> Json:
    return {"type": "base64", "media_type": media_type, "data": data}

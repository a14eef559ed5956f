"""Translates content parts: text, images, files, and where a cache may end."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection

from tornadoproxy.openai.reading import Json, obj, one_of, refuse, text

IN_SYSTEM = ("text",)
IN_ASSISTANT = ("text", "refusal")
IN_USER = ("text", "image_url", "file")
"""The parts that a message of each role can have; results of tools have what users have."""

IMAGE_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp")

_TEXT_TYPES = (
    "application/json",
    "application/xml",
    "application/x-yaml",
    "application/yaml",
    "application/javascript",
)

# How the base64 of each kind of file begins. Clients often name an image's type wrongly, which
# upstream refuses, and a file's not at all.
_BEGINNINGS = {
    "/9j/": "image/jpeg",
    "iVBORw0KGgo": "image/png",
    "R0lGOD": "image/gif",
    "UklGR": "image/webp",
    "JVBERi0": "application/pdf",
}

_DATA_URL = re.compile(r"data:([^;,]{0,127})(?:;[^;,]{1,127}){0,8};base64,", re.IGNORECASE)
_MAX_TITLE = 500  # characters, upstream's limit


def text_block(content: str) -> Json:
    """A block of text."""
    return {"type": "text", "text": content}


def blocks(content: object, param: str, kinds: Collection[str], ignored: list[str]) -> list[Json]:
    """The blocks of a message's content: a string, a list of parts, or nothing.

    Text with nothing in it, which upstream does not take, is left out.

    :param kinds: the kinds of parts that can stand here.
    :param ignored: takes the names of what is dropped.
    :raises InvalidRequest: a part is wrong, or of a kind that Claude does not take here.
    """
    if content is None:
        return []
    if isinstance(content, str):
        return [text_block(content)] if content.strip() else []
    if not isinstance(content, list):
        refuse(param, "must be a string or a list of parts")
    found = [
        _block(part, f"{param}[{index}]", kinds, ignored) for index, part in enumerate(content)
    ]
    return [block for block in found if block["type"] != "text" or block["text"].strip()]


def cache_control(holder: Json, param: str, ignored: list[str]) -> Json | None:
    """Where a cache may end: Anthropic's ``cache_control``, or OpenAI's breakpoint.

    A breakpoint's lifetime is a minimum. An hour keeps the half hour that is its default, and is
    the longest that there is.
    """
    if holder.get("cache_control") is not None:
        return obj(holder["cache_control"], f"{param}.cache_control")
    if holder.get("prompt_cache_breakpoint") is None:
        return None
    if obj(holder["prompt_cache_breakpoint"], f"{param}.prompt_cache_breakpoint").get(
        "ttl"
    ) not in (
        None,
        "30m",
    ):
        ignored.append("prompt_cache_breakpoint.ttl")
    return {"type": "ephemeral", "ttl": "1h"}


def _block(part: object, param: str, kinds: Collection[str], ignored: list[str]) -> Json:
    part = obj(part, param)
    kind = one_of(part.get("type"), f"{param}.type", kinds)
    if kind == "image_url":
        block = _image(part.get("image_url"), f"{param}.image_url", ignored)
    elif kind == "file":
        block = _document(obj(part.get("file"), f"{param}.file"), f"{param}.file")
    else:  # the text of a text part, or of a refusal
        block = text_block(text(part.get(kind), f"{param}.{kind}"))
    cached = cache_control(part, param, ignored)
    if cached is not None:
        block["cache_control"] = cached
    return block


def _image(image: object, param: str, ignored: list[str]) -> Json:
    if isinstance(image, dict):
        param = f"{param}.url"
        if image.get("detail") not in (None, "auto"):
            ignored.append("image_url.detail")
        image = image.get("url")
    url = text(image, param)
    if url[:5].lower() != "data:":
        if url[:8].lower() != "https://" and url[:7].lower() != "http://":
            refuse(param, "must be an http, https or data URL")
        return {"type": "image", "source": {"type": "url", "url": url}}
    media_type, data, _ = _data_url(url, param)
    if media_type not in IMAGE_TYPES:
        refuse(param, f"must hold one of {', '.join(IMAGE_TYPES)}")
    return {"type": "image", "source": _base64(media_type, data)}


def _document(file: Json, param: str) -> Json:
    if file.get("file_id") is not None:
        source: Json = {"type": "file", "file_id": text(file["file_id"], f"{param}.file_id")}
    else:
        source = _file_source(text(file.get("file_data"), f"{param}.file_data"), param)
    block: Json = {"type": "document", "source": source}
    if file.get("filename") is not None:
        name = text(file["filename"], f"{param}.filename")
        if name.strip():
            block["title"] = name[:_MAX_TITLE]
    return block


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
    """The media type, the base64 text and the content of a data URL (RFC 2397)."""
    head = _DATA_URL.match(url)
    if head is None:
        refuse(param, "must be a data URL of the form data:<media type>;base64,<data>")
    data = url[head.end() :]
    media_type = _begins_as(data) or head[1].strip().lower()
    return media_type, data, _decoded(data, param)


def _begins_as(data: str) -> str:
    """The media type of what begins as base64 `data` does; empty if that says nothing."""
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

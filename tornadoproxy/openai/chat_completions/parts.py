"""The translation of the content parts of chat completions."""

from __future__ import annotations

from collections.abc import Collection

from tornadoproxy.openai.caching import cache_control
from tornadoproxy.openai.content import document_block, image_block, text_block
from tornadoproxy.openai.reading import Json, obj, one_of, refuse, text

IN_SYSTEM = ("text",)
IN_ASSISTANT = ("text", "refusal")
IN_USER = ("text", "image_url", "file")
"""The types of parts in a message of each role; results of tools can have those of users."""


def blocks(content: object, param: str, kinds: Collection[str], ignored: list[str]) -> list[Json]:
    """Return the blocks of a message's content: a string, a list of parts, or ``None``.

    Blank text, which the upstream refuses, is left out.

    :param kinds: the types of parts that are allowed here.
    :param ignored: takes the names of what is dropped.
    :raises InvalidRequest: a part is invalid, or of another type.
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


def _block(part: object, param: str, kinds: Collection[str], ignored: list[str]) -> Json:
    part = obj(part, param)
    kind = one_of(part.get("type"), f"{param}.type", kinds)
    if kind == "image_url":
        block = _image(part.get("image_url"), f"{param}.image_url", ignored)
    elif kind == "file":
        block = document_block(obj(part.get("file"), f"{param}.file"), f"{param}.file")
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
    return image_block(text(image, param), param)

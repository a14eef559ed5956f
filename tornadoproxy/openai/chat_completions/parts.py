"""The translation of the content parts of chat completions."""

from __future__ import annotations

from collections.abc import Collection

from tornadoproxy.openai.content import content_blocks, document_block, image_block, text_block
from tornadoproxy.openai.reading import Json, obj, one_of, text

IN_SYSTEM = ("text",)
IN_ASSISTANT = ("text", "refusal")
IN_USER = ("text", "image_url", "file")
"""The types of parts in a message of each role; results of tools can have those of users."""


def blocks(content: object, param: str, kinds: Collection[str], ignored: list[str]) -> list[Json]:
    """Return the blocks of a message's content; see `tornadoproxy.openai.content`.

    :param kinds: the types of parts that are allowed here.
    :param ignored: takes the names of what is dropped.
    :raises InvalidRequest: a part is invalid, or of another type.
    """

    def block_of(part: Json, where: str) -> Json:
        kind = one_of(part.get("type"), f"{where}.type", kinds)
        if kind == "image_url":
            return _image(part.get("image_url"), f"{where}.image_url", ignored)
        if kind == "file":
            return document_block(obj(part.get("file"), f"{where}.file"), f"{where}.file")
        return text_block(text(part.get(kind), f"{where}.{kind}"))  # of a text, or of a refusal

    return content_blocks(content, param, block_of, ignored)


def _image(image: object, param: str, ignored: list[str]) -> Json:
    if isinstance(image, dict):
        param = f"{param}.url"
        if image.get("detail") not in (None, "auto"):
            ignored.append("image_url.detail")
        image = image.get("url")
    return image_block(text(image, param), param)

"""The translation of the content parts of the Responses API.

Source: https://platform.openai.com/docs/api-reference/responses/create (``input``)
"""

from __future__ import annotations

from collections.abc import Collection

from tornadoproxy.openai.content import content_blocks, document_block, image_block, text_block
from tornadoproxy.openai.reading import Json, one_of, refuse, text

_TEXTS = ("input_text", "output_text", "text")

IN_SYSTEM = _TEXTS
IN_ASSISTANT = (*_TEXTS, "refusal")
IN_USER = (*_TEXTS, "input_image", "input_file")
"""The types of parts in a message of each role; outputs of calls can have those of users."""


def blocks(content: object, param: str, kinds: Collection[str], ignored: list[str]) -> list[Json]:
    """Return the blocks of a message's content, or of the output of a call.

    :param content: a string, a list of parts, or ``None``.
    :param kinds: the types of parts that are allowed here.
    :param ignored: takes the names of what is dropped.
    :raises InvalidRequest: a part is invalid, or of another type.
    """

    def block_of(part: Json, where: str) -> Json:
        kind = one_of(part.get("type"), f"{where}.type", kinds)
        if kind == "input_image":
            return _image(part, where, ignored)
        if kind == "input_file":
            if part.get("detail") not in (None, "auto"):
                ignored.append("input_file.detail")
            return document_block(part, where)
        name = "refusal" if kind == "refusal" else "text"
        return text_block(text(part.get(name), f"{where}.{name}"))

    return content_blocks(content, param, block_of, ignored)


def _image(part: Json, param: str, ignored: list[str]) -> Json:
    if part.get("detail") not in (None, "auto"):
        ignored.append("input_image.detail")
    if part.get("image_url") is not None:
        return image_block(text(part["image_url"], f"{param}.image_url"), f"{param}.image_url")
    if part.get("file_id") is None:
        refuse(f"{param}.image_url", "or file_id is required")
    file_id = text(part["file_id"], f"{param}.file_id")
    return {"type": "image", "source": {"type": "file", "file_id": file_id}}

"""Response objects and items for tests of the stores."""

from __future__ import annotations

from tornadoproxy.openai.reading import Json


def message(item_id: str, text: str = "Hi") -> Json:
    return {"type": "message", "id": item_id, "role": "user", "content": text}


def response(response_id: str, *output: Json, instructions: str = "") -> Json:
    return {
        "id": response_id,
        "object": "response",
        "status": "completed",
        "instructions": instructions,
        "output": list(output),
    }

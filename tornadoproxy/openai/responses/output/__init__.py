"""The upstream's message, whole or streamed, translated into a response of OpenAI's API."""

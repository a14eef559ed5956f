"""OpenAI's API, below ``/openai/``, asked of the upstream as Anthropic messages."""

"""OpenAI's APIs below ``/openai/``, sent upstream as Anthropic messages."""

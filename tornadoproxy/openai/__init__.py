"""OpenAI's APIs translated to Anthropic messages and back, without I/O."""

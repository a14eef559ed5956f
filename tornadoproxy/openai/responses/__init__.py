"""The translation between OpenAI's Responses API and Anthropic's messages. Sans-io.

Source: https://platform.openai.com/docs/api-reference/responses
"""

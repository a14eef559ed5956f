"""What people paste to set up their clients, as docs/clients.md describes it."""

from __future__ import annotations

KEY = "YOUR_KEY"


def snippets(base_url: str) -> list[tuple[str, str]]:
    """Return the name of each client, and its set-up.

    :param base_url: of the proxy, without a trailing slash.
    """
    return [
        (
            "Claude Code",
            f"export ANTHROPIC_BASE_URL={base_url}\nexport ANTHROPIC_AUTH_TOKEN={KEY}\nclaude",
        ),
        (
            "Codex (~/.codex/config.toml, and export TORNADOPROXY_TOKEN)",
            'model_provider = "tornadoproxy"\n\n[model_providers.tornadoproxy]\n'
            f'name = "tornadoproxy"\nbase_url = "{base_url}/openai/v1"\n'
            'env_key = "TORNADOPROXY_TOKEN"\nwire_api = "responses"',
        ),
        (
            "Anthropic's SDK for Python",
            "from anthropic import Anthropic\n\n"
            f'client = Anthropic(base_url="{base_url}", api_key="{KEY}")',
        ),
        (
            "OpenAI's SDK for Python",
            "from openai import OpenAI\n\n"
            f'client = OpenAI(base_url="{base_url}/openai/v1", api_key="{KEY}")',
        ),
        (
            "Anthropic's SDK for TypeScript",
            'import Anthropic from "@anthropic-ai/sdk";\n\n'
            f'const client = new Anthropic({{ baseURL: "{base_url}", apiKey: "{KEY}" }});',
        ),
        (
            "curl",
            f'curl {base_url}/v1/messages -H "x-api-key: {KEY}" \\\n'
            '  -H "anthropic-version: 2023-06-01" -H "content-type: application/json" \\\n'
            '  -d \'{"model": "claude-sonnet-5-5", "max_tokens": 100, "messages": '
            '[{"role": "user", "content": "Hi"}]}\'',
        ),
    ]

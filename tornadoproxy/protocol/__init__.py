"""The wire formats: headers, framing, events, errors, usage. Sans-io."""

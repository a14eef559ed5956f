"""What plugins keep, behind one contract: `Database`.

`database` runs the thread and holds what is written behind; `sqlite_file` is the only module that
knows SQLite. Another engine is a class of its own beside `Database` with the same members for
plugins: `check`, `open`, `start`, `run`, `write_behind`, `changed`, `close`, `failing` and `lost`
in the proxy; ``with database:``, `transaction` and `reading` in commands. It raises
`ConfigurationError` from `check`, `open` and commands, and `DatabaseUnavailable` while the proxy
runs, instead of its library's errors.
"""

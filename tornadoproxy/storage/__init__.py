"""Storage for plugins: a contract, and an engine for SQLite and one for PostgreSQL.

`contract` says what every engine offers. `database` is the SQLite engine: `worker` is the thread
that uses its file while the proxy runs, and `sqlite_file` the only module that knows SQLite.
"""

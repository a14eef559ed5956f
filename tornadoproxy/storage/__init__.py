"""What plugins keep.

`contract` says what every engine offers. `database` is the SQLite engine, which runs in a thread of
its own; `sqlite_file` is the only module that knows SQLite.
"""

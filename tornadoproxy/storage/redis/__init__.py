"""The client of Redis and Valkey servers, for shared counters."""

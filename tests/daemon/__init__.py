"""The daemon and its parts, on this machine alone: servers in memory, a clock that stands still where one is needed."""

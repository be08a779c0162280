"""The bench: maild beside its peers and beside the limits of the machine, in one run, contents verified.

Read `run` (the command), `scenarios` (what is timed and what must be reached), `clients` (who is timed, and how each is
configured), `limits` (the least a client can do), `corpus` and `verify` (what is fetched, and whether it is), `report`.
"""

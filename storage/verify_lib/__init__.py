"""The parts of `storage/verify.py`. Standard library only, and nothing of ray_durable, whose mistakes it is to find.

`verify.py` and this folder belong together: copy both to wherever a root is to be checked, and nothing else. In the
order of a check: `roots` reads objects, `names` knows where each belongs, `segments` takes one apart, `logs` goes
through an execution's segments, `histories` through its events, `sending` through its messages, `successions` from one
execution to the next, `instances`, `index` and `hubs` look at all that is around the logs, `ledger` and `messages` at
what instances say to each other. `findings` is the outcome.
"""

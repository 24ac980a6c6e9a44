"""Keeps what a node runs. Standard library only; runs on Python 3.10 and later.

    python3 supervisor.py [--wait-for HOST:PORT] [--node NAME --group HOST:PORT [--lead]]
                          [-- ray start ... --block]

Keeps `ray start` and ends with its exit code, so that Docker's restart policy does its part.
"{boot}" in that command becomes a new word at every start, which also stands in the file `boot`
next to this package: what Ray says of a node can then be told from what it said of an earlier
life. `--wait-for` holds Ray back until a TCP connection to the head is answered: a worker which
boots before its head waits instead of failing.

Beside it, the deployments: docs/architecture.md, "What a supervisor keeps". Every node has the same
`node.Node`, which obeys orders and says what it sees. On the head, which leads, `leader` makes the
orders of all nodes out of what all nodes see; the others get theirs over `wire`.
"""

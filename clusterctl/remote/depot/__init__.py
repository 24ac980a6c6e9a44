"""What carries models and images between hosts, on each of them. Standard library only.

    python3 -m depot        requests in, replies and events out, one JSON object a line

It serves one run of clusterctl: when its stdin ends, or nothing is heard for SILENCE_S, it ends.
What has arrived by then stays under a hidden name, and the next run goes on from there.

    {"id": 1, "op": "room", "directory": "/models"}      -> {"id": 1, "ok": {...}}
                                                         or {"id": 1, "error": "...", "kind": "..."}
    {"op": "data", "index": 0, "offset": 0, "size": N}   N bytes follow; there is no reply
    {"op": "alive"}                                      there is no reply
                                                         <- {"event": "progress", ...} at any time
"""

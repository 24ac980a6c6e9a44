"""Facts about hosts: each a probe (a shell snippet) and a PURE parser of what it printed."""

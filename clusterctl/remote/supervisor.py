"""The first process of a node's container: runs the package `supervision` that lies next to it."""

import runpy

if __name__ == "__main__":
    runpy.run_module("supervision", run_name="__main__", alter_sys=True)

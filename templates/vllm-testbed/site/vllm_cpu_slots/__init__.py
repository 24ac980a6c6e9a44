"""A platform plugin of vLLM, for the testbed alone: Ray places ranks on our CPU slots.

vLLM itself is not changed. Nothing of it may be imported here: it is looking for its platform.
"""


def platform():
    return f"{__name__}.platform.CpuSlots"

"""A platform plugin of vLLM, for the testbed alone: Ray places ranks on our CPU slots.

vLLM's Ray executor places every rank on one unit of its platform's Ray resource, and the CPU
platform names none ("current platform cpu does not support ray"). vLLM itself is not changed.
"""

RESOURCE = "cpu_slot"


def platform():
    return f"{__name__}.CpuSlots"


def __getattr__(name):
    """The class, made when vLLM asks for it by name: importing vLLM earlier would be a circle."""
    if name != "CpuSlots":
        raise AttributeError(name)
    from ray.runtime_context import RuntimeContext
    from vllm.platforms.cpu import CpuPlatform

    ids_of_accelerators = RuntimeContext.get_accelerator_ids

    def ids(context):
        """Ray numbers accelerators only; a slot has no number."""
        return {**ids_of_accelerators(context), RESOURCE: []}

    class CpuSlots(CpuPlatform):
        ray_device_key = RESOURCE

    RuntimeContext.get_accelerator_ids = ids
    globals()[name] = CpuSlots
    return CpuSlots

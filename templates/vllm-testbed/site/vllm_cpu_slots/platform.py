"""vLLM's Ray executor places every rank on one unit of its platform's Ray resource, and the CPU
platform names none ("current platform cpu does not support ray")."""

from ray.runtime_context import RuntimeContext
from vllm.platforms.cpu import CpuPlatform

RESOURCE = "cpu_slot"

_ids_of_accelerators = RuntimeContext.get_accelerator_ids


def _ids(context):
    """Ray numbers accelerators only; a slot has no number."""
    return {**_ids_of_accelerators(context), RESOURCE: []}


RuntimeContext.get_accelerator_ids = _ids


class CpuSlots(CpuPlatform):
    ray_device_key = RESOURCE

    @classmethod
    def get_device_communicator_cls(cls):
        return f"{__package__}.communicator.Communicator"

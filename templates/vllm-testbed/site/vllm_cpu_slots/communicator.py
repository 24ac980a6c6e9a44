"""Shared memory only between ranks of one host.

vLLM's CPU ranks take shared memory when all of them made the same name for it, and the name holds
no more of the place than the port at which they met: over Ray that is one for all hosts, and they
look for each other's segments ("open shm in SHMManager failed"). Its own multi-node meets at a port
of each host.
"""

import socket

import torch
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator


class Communicator(CpuCommunicator):
    def _all_group_ranks_share_shm_group_name(self):
        hosts = [""] * self.world_size
        torch.distributed.all_gather_object(hosts, socket.gethostname(), group=self.device_group)
        return len(set(hosts)) == 1 and super()._all_group_ranks_share_shm_group_name()

"""The most memory that was in use on a device, since several moments at once."""

import torch


class PeakMemory:
    """torch remembers one peak only; this remembers one for each who asks. Used by one thread.

    Args:
        device: Only a CUDA device has numbers to tell.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._most: dict[str, int] = {}

    def begin(self, name: str) -> None:
        """Remember the most from now on, under a name."""
        if self._device.type == "cuda":
            self._note()
            self._most[name] = torch.cuda.memory_allocated(self._device)

    def since(self, name: str) -> int | None:
        """The most bytes in use since `begin`; None where nobody knows."""
        if self._device.type != "cuda":
            return None
        self._note()
        return self._most.get(name)

    def _note(self) -> None:
        peak = torch.cuda.max_memory_allocated(self._device)
        self._most = {name: max(most, peak) for name, most in self._most.items()}
        torch.cuda.reset_peak_memory_stats(self._device)


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can still be allocated on the device; None on a CPU, where nobody knows."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)

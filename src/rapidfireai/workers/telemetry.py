"""What a worker's device and process are doing, as a few cheap numbers.

Metrics for people to look at. Whoever decides about memory asks the device itself.
"""

import logging
from collections.abc import Iterable
from typing import Any, Final

import psutil
import torch

from rapidfireai.workers.peak import PeakMemory

logger = logging.getLogger(__name__)

_GIB: Final = 2**30


class DeviceMonitor:
    """Measures one device and the process that uses it. Used by one thread.

    Args:
        device: The device that the process trains on.
        peak: Of the device.
    """

    def __init__(self, device: torch.device, peak: PeakMemory | None = None) -> None:
        self._device = device
        self._peak = peak or PeakMemory(device)
        self._peak.begin("reading")
        self._process = psutil.Process()
        # The first reading of the CPU has nothing to compare with, and is thrown away here.
        self._process.cpu_percent()
        self._gpu = _Gpu.of(device) if device.type == "cuda" else None

    def read(self) -> dict[str, float]:
        """The numbers of now, by name; what cannot be measured here is absent.

        Of the process: `host_memory_gib`, resident; `cpu_percent` since the last reading, 100 for
        each core that was busy throughout. Of the machine: `host_memory_available_gib`, what can
        be had without swapping, whatever limit a container sets.

        On CUDA also `device_memory_gib`, in tensors of this process, and `device_memory_peak_gib`,
        the most of it since the last reading; `device_memory_used_gib`, by all processes, out of
        `device_memory_total_gib`; and with NVML `device_utilization_percent`, the share of the last
        second or less in which a kernel ran.
        """
        values = {
            "host_memory_gib": self._process.memory_info().rss / _GIB,
            "host_memory_available_gib": psutil.virtual_memory().available / _GIB,
            "cpu_percent": self._process.cpu_percent(),
        }
        if self._device.type == "cuda":
            values |= _memory(self._device, self._peak)
        if self._gpu is not None:
            values |= self._gpu.read()
        return values


def own_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes that the tensors keep occupied, each storage counted once."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({(s.device, s.data_ptr()): s.nbytes() for s in storages}.values())


def _memory(device: torch.device, peak: PeakMemory) -> dict[str, float]:
    # Asked of CUDA rather than NVML: it is always there, and right on a slice of a GPU (MIG) too.
    free, total = torch.cuda.mem_get_info(device)
    values = {
        "device_memory_gib": torch.cuda.memory_allocated(device) / _GIB,
        "device_memory_peak_gib": (peak.since("reading") or 0) / _GIB,
        "device_memory_used_gib": (total - free) / _GIB,
        "device_memory_total_gib": total / _GIB,
    }
    peak.begin("reading")
    return values


class _Gpu:
    """A GPU as NVML sees it."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle

    @classmethod
    def of(cls, device: torch.device) -> "_Gpu | None":
        """The device's, by its UUID since numbers differ with CUDA_VISIBLE_DEVICES.

        None where NVML or its Python package is missing, or does not know the device.
        """
        try:
            import pynvml as nvml  # noqa: PLC0415 - optional
        except ImportError:
            return None
        uuid = torch.cuda.get_device_properties(device).uuid
        try:
            nvml.nvmlInit()
            gpu = cls(nvml, nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))
            gpu._utilization()
        except nvml.NVMLError as error:
            # A slice of a GPU has no utilisation, and a container may have no NVML.
            logger.debug("no utilisation of %s: %s", device, error)
            return None
        return gpu

    def read(self) -> dict[str, float]:
        try:
            return {"device_utilization_percent": float(self._utilization())}
        except self._nvml.NVMLError:
            return {}

    def _utilization(self) -> int:
        return self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu

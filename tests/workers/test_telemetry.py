import sys
from types import ModuleType, SimpleNamespace

import psutil
import pytest
import torch

from rapidfireai.workers.telemetry import DeviceMonitor, own_bytes

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
GIB = 2**30

HOST = {"host_memory_gib", "host_memory_available_gib", "cpu_percent"}
DEVICE = {
    "device_memory_gib",
    "device_memory_peak_gib",
    "device_memory_used_gib",
    "device_memory_total_gib",
}


class NVMLError(Exception):
    pass


class FakeNvml(ModuleType):
    """NVML with one device."""

    NVMLError = NVMLError

    def __init__(self, uuid: str) -> None:
        super().__init__("pynvml")
        self._uuid = uuid
        self.is_lost = False

    def nvmlInit(self) -> None:
        if not self._uuid:
            raise NVMLError("driver not loaded")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != self._uuid:
            raise NVMLError("not found")
        return "handle"

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:
        if self.is_lost:
            raise NVMLError("GPU is lost")
        return SimpleNamespace(gpu=87)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """As much of CUDA as the monitor asks for."""
    for name, value in {
        "mem_get_info": (30 * GIB, 80 * GIB),
        "memory_allocated": 4 * GIB,
        "max_memory_allocated": 6 * GIB,
        "reset_peak_memory_stats": None,
        "get_device_properties": SimpleNamespace(uuid="1-2-3"),
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)


def test_host_numbers_are_the_process_s() -> None:
    monitor = DeviceMonitor(CPU)
    before = monitor.read()
    assert before.keys() == HOST
    kept = torch.ones(64 * 2**20)  # 256 MiB
    after = monitor.read()
    assert after["host_memory_gib"] - before["host_memory_gib"] == pytest.approx(0.25, abs=0.05)
    assert after["host_memory_gib"] == pytest.approx(psutil.Process().memory_info().rss / GIB, 0.2)
    assert 0 < after["host_memory_available_gib"] <= psutil.virtual_memory().total / GIB
    assert after["cpu_percent"] >= 0
    assert kept[0] == 1


@pytest.mark.usefixtures("cuda")
def test_device_numbers_come_from_torch_and_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml("GPU-1-2-3")
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monitor = DeviceMonitor(CUDA)
    values = monitor.read()
    assert {name: values[name] for name in values.keys() - HOST} == {
        "device_memory_gib": 4.0,
        "device_memory_peak_gib": 6.0,
        "device_memory_used_gib": 50.0,
        "device_memory_total_gib": 80.0,
        "device_utilization_percent": 87.0,
    }
    nvml.is_lost = True
    assert monitor.read().keys() == HOST | DEVICE


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize(
    "nvml",
    [
        pytest.param(None, id="not installed"),
        pytest.param(FakeNvml(""), id="no driver"),
        pytest.param(FakeNvml("GPU-9"), id="other device"),
    ],
)
def test_without_nvml_the_utilization_is_absent(
    nvml: FakeNvml | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert DeviceMonitor(CUDA).read().keys() == HOST | DEVICE


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_peak_is_that_since_the_last_reading() -> None:
    monitor = DeviceMonitor(CUDA)
    monitor.read()
    large = torch.ones(GIB // 4, device=CUDA)
    del large
    assert monitor.read()["device_memory_peak_gib"] >= 1.0
    values = monitor.read()
    assert values["device_memory_peak_gib"] < 1.0
    assert values["device_memory_used_gib"] <= values["device_memory_total_gib"]
    assert 0 <= values.get("device_utilization_percent", 0) <= 100


def test_own_bytes_counts_each_storage_once() -> None:
    whole = torch.zeros(1000)
    other = torch.zeros(10, dtype=torch.float64)
    assert own_bytes([]) == 0
    assert own_bytes([whole, whole[:10], whole.view(10, 100)]) == 4000
    assert own_bytes(iter([whole, other, torch.empty(0)])) == 4080
    assert own_bytes([whole[:1]]) == 4000  # what is kept occupied, not what is looked at

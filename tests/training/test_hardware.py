"""What a device can do."""

import time

import pytest
import torch

from tests.training.runs import tiny_config
from training import hardware
from training.distributed import World
from training.hardware import (
    execution_facts,
    gpu_peak_flops,
    measure_matmul_flops,
    memory_gb,
    network_settings,
    peak_flops,
)

CPU = torch.device("cpu")


def test_the_peak_in_the_config_overrules_a_measurement():
    assert peak_flops(tiny_config("data", training={"peak_tflops": 2.5}).training, CPU) == 2.5e12


def test_a_measured_peak_is_one_a_computer_could_have():
    assert 1e8 < measure_matmul_flops(torch.float32, size=256, seconds=0.01) < 1e15


def test_the_peak_is_that_of_the_kernel_the_model_multiplies_with_when_it_is_the_faster_one(monkeypatch):
    def at_once(a, b):
        return a

    monkeypatch.setattr(hardware, "matmul_transposed", at_once)
    size = 256
    started = time.perf_counter()
    torch.mm(torch.ones(size, size), torch.ones(size, size))
    plain = 2 * size**3 / (time.perf_counter() - started)
    assert measure_matmul_flops(torch.float32, size=size, seconds=0.01) > plain


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", 70),
        ("NVIDIA A40", 150),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA RTX A1000", None),
        ("Tesla T4", None),
    ],
)
def test_a_gpu_is_known_by_whole_words_of_its_name(name, tflops):
    assert gpu_peak_flops(name) == (None if tflops is None else tflops * 1e12)


def test_what_a_rank_computes_with_is_told_by_name():
    facts = execution_facts(tiny_config("data"), World.alone())
    assert facts == {"device": "cpu", "collectives": "gloo", "attention": "sdpa"}


def test_a_backend_that_cannot_run_here_is_refused_before_anything_is_built():
    with pytest.raises(ValueError, match=r"model.attention_backend: flash cannot run, it needs a CUDA device"):
        execution_facts(tiny_config("data", model={"attention_backend": "flash"}), World.alone())


def test_memory_is_counted_in_gigabytes():
    assert 0.01 < memory_gb(CPU) < 10_000


def test_what_the_environment_says_of_the_network_is_named(monkeypatch):
    for name in network_settings():
        monkeypatch.delenv(name)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    monkeypatch.setenv("FI_PROVIDER", "efa")
    monkeypatch.setenv("MY_NCCL_DEBUG", "INFO")
    assert list(network_settings().items()) == [("FI_PROVIDER", "efa"), ("NCCL_SOCKET_IFNAME", "ib0")]

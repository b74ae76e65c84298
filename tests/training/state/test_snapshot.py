"""Memory that snapshots are copied into."""

import pytest
import torch

from training.state.snapshot import HostCopies


def test_one_snapshot_after_another_takes_the_same_memory():
    copies = HostCopies(pinned=False)
    first, other = copies.of("weight", 1000), copies.of("exp_avg", 1000)
    assert copies.of("weight", 1000).data_ptr() == first.data_ptr() != other.data_ptr()
    assert copies.of("weight", 2000).numel() == 2000 and copies.of("exp_avg", 0).numel() == 0


@pytest.mark.gpu
def test_beside_a_gpu_it_is_page_locked_and_holds_what_is_copied():
    copies = HostCopies(pinned=True)
    memory, values = copies.of("weight", 5_000_000), torch.randn(5_000_000, device="cuda")
    assert memory.is_pinned()
    memory.copy_(values, non_blocking=True)
    torch.cuda.current_stream().synchronize()
    assert torch.equal(memory, values.cpu())
    assert copies.of("weight", 100).is_pinned() and copies.of("none", 0).numel() == 0

"""Files read and written by a thread, where DeepSpeed's async_io is not built: compiling it takes minutes.

`use()` puts it in async_io's place for the calls that DeepSpeed's swappers make. They, their files and buffers are the
real ones, and so is what a file holds; with async_io in TORCH_EXTENSIONS_DIR the same tests run on that.
"""

import os
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import torch
from deepspeed.git_version_info import installed_ops
from deepspeed.ops.op_builder.builder import OpBuilder

MODULE = "_deepspeed_pin_memory_op_module"
"""Where DeepSpeed keeps what page-locks memory, by process."""


def is_built() -> bool:
    """Whether async_io itself is there."""
    folder = os.environ.get("TORCH_EXTENSIONS_DIR")
    return installed_ops.get("async_io", False) or bool(folder and (Path(folder) / "async_io" / "async_io.so").exists())


def use() -> None:
    """Has DeepSpeed take it for async_io in this process."""
    installed_ops["async_io"] = True
    OpBuilder._loaded_ops["async_io"] = SimpleNamespace(aio_handle=Handle)
    setattr(sys, MODULE, SimpleNamespace())


class Handle:
    """What async_io calls a handle: operations are begun, and waited for together."""

    _locked: ClassVar[set[int]] = set()
    """Places of what any handle of the process has locked."""

    def __init__(self, **_: object):
        self._thread = ThreadPoolExecutor(1)
        self._begun: list[Future] = []

    def new_cpu_locked_tensor(self, num_elements: int, like: torch.Tensor) -> torch.Tensor:
        """Memory that files are read into and written from."""
        tensor = torch.empty(num_elements, dtype=like.dtype)
        self._locked.add(tensor.untyped_storage().data_ptr())
        return tensor

    def free_cpu_locked_tensor(self, tensor: torch.Tensor) -> None:
        """Gives it up."""
        self._locked.discard(tensor.untyped_storage().data_ptr())

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        """Whether it lies in such memory."""
        return tensor.untyped_storage().data_ptr() in self._locked

    def async_pread(self, buffer: torch.Tensor, path: str, offset: int) -> int:
        """Begins to fill the buffer from a file."""
        return self._begin(buffer, lambda view: _whole(os.preadv, os.O_RDONLY, path, view, offset))

    def async_pwrite(self, buffer: torch.Tensor, path: str, offset: int) -> int:
        """Begins to write the buffer to a file."""
        return self._begin(buffer, lambda view: _whole(os.pwritev, os.O_WRONLY | os.O_CREAT, path, view, offset))

    def wait(self) -> int:
        """How many operations have been done since the last wait."""
        begun, self._begun = self._begun, []
        for operation in begun:
            operation.result()
        return len(begun)

    def _begin(self, buffer: torch.Tensor, action: Callable[[memoryview], None]) -> int:
        view = buffer.detach().view(-1).view(torch.uint8).numpy().data
        self._begun.append(self._thread.submit(action, view))
        return 0


def _whole(call: Callable, flags: int, path: str, view: memoryview, offset: int) -> None:
    descriptor = os.open(path, flags, 0o600)
    try:
        done = 0
        while done < len(view):
            count = call(descriptor, [view[done:]], offset + done)
            assert count, f"{path} ends at {offset + done}, {len(view)} bytes were to be read"
            done += count
    finally:
        os.close(descriptor)

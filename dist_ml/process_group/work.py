"""What torch waits for: an operation that is over, or a message under way."""

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from dist_ml.comm.request import Request


def done(result: Any) -> dist.Work:
    """An operation that has ended when it returns. DDP waits for the future and not for the work,
    so that one which only moves when it is asked would never end.
    """
    future: torch.futures.Future[Any] = torch.futures.Future()
    future.set_result(result)
    make: Any = torch._C._distributed_c10d
    work: dist.Work = make._create_work_from_future(future)
    return work


class MessageWork(dist.Work):
    """A message under way; its tensors belong to it until `wait`."""

    def __init__(self, request: Request, source: int) -> None:
        super().__init__()
        self._request, self._source, self._over = request, source, False

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        if not self._over:
            self._request.wait()
            self._over = True
        return True

    def is_completed(self) -> bool:
        self._over = self._over or self._request.test()
        return self._over

    def is_success(self) -> bool:
        return self._over

    def synchronize(self) -> None:
        self.wait()

    def source_rank(self) -> int:
        return self._source

    _source_rank = source_rank

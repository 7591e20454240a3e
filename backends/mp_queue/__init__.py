"""The portable bus: pure Python, one Unix-socket channel per consumer, safe against SIGKILL."""

from asys_bench.backends.mp_queue.bus import PythonQueueBus
from asys_bench.backends.mp_queue.client import QueueClient

__all__ = ["PythonQueueBus", "QueueClient"]

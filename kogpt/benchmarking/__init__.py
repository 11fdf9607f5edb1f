"""How fast a model reads and writes, beside what the memory of the machine allows."""

from kogpt.benchmarking.bandwidth import read_bandwidth
from kogpt.benchmarking.machine import describe_machine, peak_memory, process_age
from kogpt.benchmarking.report import Figures, Report
from kogpt.benchmarking.timing import Bench, Plan, generate
from kogpt.benchmarking.traffic import cache_bytes, step_bytes, streamed, streamed_bytes

__all__ = [
    "Bench",
    "Figures",
    "Plan",
    "Report",
    "cache_bytes",
    "describe_machine",
    "generate",
    "peak_memory",
    "process_age",
    "read_bandwidth",
    "step_bytes",
    "streamed",
    "streamed_bytes",
]

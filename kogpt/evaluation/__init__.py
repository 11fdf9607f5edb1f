"""Few-shot evaluation: tasks as files, protocols as data, every row's scores kept."""

from kogpt.choices import RULES
from kogpt.evaluation.comparing import compare_reports, comparison_table
from kogpt.evaluation.journal import Journal
from kogpt.evaluation.likelihood import Likelihood, Query, log_likelihoods
from kogpt.evaluation.metrics import METRICS, Outcome, compare, interval, measure
from kogpt.evaluation.protocol import Preset, Protocol, load_preset, preset_names
from kogpt.evaluation.report import make_report, outcome_of, read_report, tables
from kogpt.evaluation.running import Evaluator, Run, TaskData, evaluate, read_data
from kogpt.evaluation.task import Prompt, Task, load_task, task_names

__all__ = [
    "Evaluator",
    "Journal",
    "Likelihood",
    "METRICS",
    "Outcome",
    "Preset",
    "Prompt",
    "Protocol",
    "Query",
    "RULES",
    "Run",
    "Task",
    "TaskData",
    "compare",
    "compare_reports",
    "comparison_table",
    "evaluate",
    "interval",
    "load_preset",
    "load_task",
    "log_likelihoods",
    "make_report",
    "measure",
    "outcome_of",
    "preset_names",
    "read_data",
    "read_report",
    "tables",
    "task_names",
]

"""Task adapters: one forward, three answers."""

from __future__ import annotations

from unisolo.tasks.base import TaskAdapter
from unisolo.tasks.detection import DetectionTask
from unisolo.tasks.instance import InstanceTask
from unisolo.tasks.panoptic import PanopticTask

__all__ = ["TASKS", "TaskAdapter", "answered_tasks", "get_task"]

TASKS: dict[str, type[TaskAdapter]] = {
    task.name: task for task in (PanopticTask, InstanceTask, DetectionTask)
}
"""Every task by name. A new task is one line here, or in the module that defines it:
`TASKS["semantic"] = SemanticTask` (docs/tasks.md)."""


def get_task(name: str) -> type[TaskAdapter]:
    """Return a task by name.

    Raises:
        ValueError: If there is no such task; the message lists all.
    """
    try:
        return TASKS[name]
    except KeyError:
        raise ValueError(
            f"unknown task {name!r}; choose from {', '.join(TASKS)}. A task from outside the "
            "package is known once the module that adds it to unisolo.tasks.TASKS is imported"
        ) from None


def answered_tasks(trained: str) -> tuple[str, ...]:
    """Return the tasks that a model answers: those that need no head it lacks.

    Args:
        trained: The task that the model was trained for.

    Raises:
        ValueError: As `get_task`.
    """
    heads = get_task(trained).heads
    return tuple(name for name, task in TASKS.items() if task.heads <= heads)

"""The console script `lowbit-train`.

Nothing is imported before `answer` listens: Ctrl-C gives a line even while torch is being loaded.
"""

from __future__ import annotations

from fitting.entry.answer import answer


def train() -> None:
    """`lowbit-train`: one run, or with -m a sweep.

    Exit codes: 0 done, 1 a run failed, 2 a wrong request (one line says what), 130 Ctrl-C,
    143 SIGTERM.
    """
    answer("lowbit-train", _train, _told)


def _train() -> None:
    from experiments.command.train import train_command

    train_command()


def _told(error: BaseException) -> str | None:
    from experiments.config.read import told

    return told(error)

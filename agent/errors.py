"""The agent's own refusals to start. The rooms below have theirs; agent.main knows them all."""

from __future__ import annotations


class StartError(Exception):
    """The agent cannot run as asked: the text names the place, what is wrong and what would be right."""

"""Containers: the plugin that a runtime executes, and the half of it that lives in the agent."""

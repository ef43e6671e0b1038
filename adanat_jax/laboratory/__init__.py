"""Schedules on a law that is known exactly: no network, no data, no noise."""

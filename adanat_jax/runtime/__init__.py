"""Processes, devices and disks; no image, no network and no config."""

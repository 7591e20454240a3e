"""The pipeline: host -> hooks -> bus -> workers, under the watchdog."""

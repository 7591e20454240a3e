"""The run report: a finished run as one HTML file that opens offline."""

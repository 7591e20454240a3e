"""A bench result as one HTML file that opens offline."""

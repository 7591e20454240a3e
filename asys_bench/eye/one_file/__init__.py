"""All pages of a run as one file that opens offline: `all_features` (what is in it), `page` (the HTML)."""

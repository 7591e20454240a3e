"""A bench result as Markdown, to paste in a pull request."""

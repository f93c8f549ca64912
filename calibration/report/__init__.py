"""A validation as a page for people, a table for pull requests, and values for programs."""

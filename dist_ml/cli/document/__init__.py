"""A report as one HTML page or a Markdown file: parts.py holds what it says, runs.py and
experiments.py make it, html_page.py and markdown_text.py write it.
"""
